"""cola import: a released checkpoint to an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli import options
from cola_cli.cli.console import print_result, reporter


def import_(
    folder: Annotated[Path, typer.Argument(help="The folder that holds cola_dlm, or that folder.")],
    output: options.Output,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make a prior artifact of a released checkpoint, tensors byte for byte.

    Example: cola import downloads/Cola-DLM -o runs/released
    """
    from cola_cli.stages.import_checkpoint import import_checkpoint

    outcome = import_checkpoint(folder, output, reporter(quiet), overwrite)
    line = f"{output}: up to date"
    if outcome.changed:
        line = f"{output}: {outcome.statistics['parameters']:,} parameters"
    print_result(
        [line], {"path": str(output), "changed": outcome.changed} | outcome.statistics, json
    )
