"""The result of a stage, for the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cola_cli.artifacts import Output
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.cost.training import Place
from cola_cli.machine.threads import peak_memory
from cola_cli.settings.training import Train


@dataclass(frozen=True)
class Outcome:
    """A finished artifact: whether this run changed it, and its statistics."""

    path: Path
    changed: bool
    statistics: dict[str, Any] = field(default_factory=dict)


def up_to_date(output: Output) -> Outcome:
    """The outcome of a stage with nothing to do."""
    return Outcome(output.path, False, read_manifest(output.path).statistics)


def place(device: str, train: Train) -> Place:
    """Where a run with this --device flag would take place. Imports torch, as training will."""
    from cola_cli.machine.processes import pick_device

    chosen = pick_device(device)
    bf16 = train.precision == "bf16" or (train.precision == "auto" and chosen.type == "cuda")
    return Place(str(chosen), bf16, 0.0 if chosen.type == "cuda" else peak_memory())
