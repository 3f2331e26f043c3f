"""The result of a stage, for the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cola_cli.artifacts import Output
from cola_cli.artifacts.manifest import read_manifest


@dataclass(frozen=True)
class Outcome:
    """A finished artifact: whether this run changed it, and its statistics."""

    path: Path
    changed: bool
    statistics: dict[str, Any] = field(default_factory=dict)


def up_to_date(output: Output) -> Outcome:
    """The outcome of a stage with nothing to do."""
    output.tidy()
    return Outcome(output.path, False, read_manifest(output.path).statistics)
