"""cola status: what lies in a run's directory and what to run next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.console import print_json, table
from cola_cli.cli.options import Invocation, command


@command()
def status(
    run: Invocation,
    path: Annotated[Path, typer.Argument(help="An artifact, or a directory that holds some.")],
) -> None:
    """List artifacts with their state, progress, inputs, and whether a newer input makes them stale.

    Example: cola status runs/demo
    """
    from cola_cli.stages.status import survey

    rows = survey(path)
    if run.json:
        print_json({"artifacts": [row.__dict__ for row in rows]})
        return
    shown = []
    for row in rows:
        state = f"{row.state}; a new one {row.replacement}" if row.replacement else row.state
        shown.append([row.path, row.kind, state, row.progress, ", ".join(row.inputs), row.next])
    table("", ["artifact", "kind", "state", "progress", "made from", "next"], shown)
