"""cola verify: re-read every byte."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.console import print_result
from cola_cli.cli.options import Invocation, command
from cola_cli.errors import DamagedArtifact


@command()
def verify(
    run: Invocation,
    paths: Annotated[list[Path], typer.Argument(help="Artifacts, or directories that hold some.")],
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Drop what is damaged, so that the next run makes it again."),
    ] = False,
) -> None:
    """Re-read every byte of artifacts and name each damaged, missing or foreign file.

    With --repair, what is damaged or missing is dropped, and the next run makes just that again; foreign
    files are left where they are. Exit code 5 when anything is found; an unfinished artifact whose files are
    whole is `incomplete` and no damage, so that the exit code is 0.

    Example: cola verify runs/demo
    """
    from cola_cli.stages.verify import verify_artifacts

    found = verify_artifacts(paths, repair, run.reporter)
    damaged = [finding for result in found.results for finding in result.findings]
    print_result(
        [
            f"{r.directory}: {'damaged' if r.findings else r.status}, {r.files} files, {r.bytes:,} bytes"
            for r in found.results
        ]
        + [f"  {finding.problem}" for finding in damaged]
        + [f"dropped {name}" for name in found.dropped]
        + [f"run next: {command}" for command in found.again],
        {
            "artifacts": [
                {
                    "path": str(r.directory),
                    "status": r.status,
                    "files": r.files,
                    "bytes": r.bytes,
                    "findings": [{"path": f.path, "problem": f.problem} for f in r.findings],
                }
                for r in found.results
            ],
            "dropped": found.dropped,
            "next": found.again,
        },
        run.json,
    )
    if damaged and not repair:
        raise DamagedArtifact(
            f"{len(damaged)} file(s) are damaged, missing or foreign: {damaged[0].problem}",
            "Give --repair to drop them, then run the stage again.",
        )
