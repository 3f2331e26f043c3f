"""cola doctor: what this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.options import Invocation, command


@command()
def doctor(
    run: Invocation,
    directory: Annotated[Path, typer.Argument(help="Where artifacts will be written.")] = Path(),
) -> None:
    """Try what cola needs of this machine: versions, devices, compiler, disk. For reports of faults, too.

    Example: cola doctor
    """
    from cola_cli.stages.doctor import examine

    found = examine(directory)
    lines = []
    for one in found:
        mark = "ok" if not one.remedy else "!!" if one.needed else "--"
        lines.append(f"{mark}  {one.name}: {one.value}")
        lines += [f"      {one.remedy}"] * bool(one.remedy)
    problems = sum(bool(one.remedy) and one.needed for one in found)
    run.say(lines, {"findings": [one.__dict__ for one in found], "problems": problems})
