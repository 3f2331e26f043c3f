"""How a stage runs, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.reporting import Reporter, Silent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import BaseModel

    from cola_cli.artifacts import Output


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the command line tells every stage; nothing here enters the identity of an artifact.

    reporter: receives progress and remarks. device: cpu, cuda, cuda:1 ... or auto. threads: of the matrix
    library, None for a number of its own choice. overwrite: replace an artifact of another identity. log:
    names of loggers of a training. profile: the file for a trace of some of its steps.
    """

    reporter: Reporter = field(default_factory=Silent)
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    log: tuple[str, ...] = ()
    profile: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished artifact: whether this run changed it, and its statistics."""

    path: Path
    changed: bool
    statistics: dict[str, Any] = field(default_factory=dict)


def open_output(
    path: Path,
    kind: str,
    stage: str,
    settings: BaseModel,
    inputs: dict[str, str],
    run: Run,
    reads: Iterable[Path],
    decisive: dict[str, Any] | None = None,
    ways: str = "",
) -> Output:
    """`Output.open` for the artifact of a stage with these settings; nothing is written yet.

    inputs: fingerprints by name. decisive: the settings that decide the content, where they are not simply
    those of `settings` that do. ways: what a message advises besides.
    """
    from cola_cli.artifacts import Identity, Output
    from cola_cli.settings import result_settings

    chosen = result_settings(settings) if decisive is None else decisive
    identity = Identity(stage=stage, settings=chosen, inputs=inputs)
    return Output.open(
        path, kind, identity, settings.model_dump(mode="json"), run.overwrite, reads, ways
    )


def recorded_settings(path: Path, stage: str) -> tuple[str, dict[str, Any]] | None:
    """The settings of the run of that stage at `path` that another goes on from, with its name."""
    from cola_cli.artifacts.artifact import is_artifact
    from cola_cli.artifacts.manifest import read_manifest

    if not is_artifact(path):
        return None
    found = read_manifest(path)
    return (str(path), found.settings) if found.identity.stage == stage else None


def up_to_date(output: Output) -> Outcome:
    """The outcome of a stage with nothing to do."""
    from cola_cli.artifacts.manifest import read_manifest  # not for --help, which loads this module

    output.tidy()
    return Outcome(output.path, False, read_manifest(output.path).statistics)
