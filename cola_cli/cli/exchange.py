"""cola import, cola export: checkpoints in the authors' layout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from cola_cli.cli.options import Invocation, command, output_option
from cola_cli.errors import UsageError

GIBIBYTE = 1 << 30
Precision = Literal["stored", "float32", "bfloat16"]
DTYPE = typer.Option("--dtype", help="Precision of the written weights.")


@command("output", "overwrite")
def import_checkpoint(
    source: Annotated[
        Path,
        typer.Argument(help="The folder that holds cola_dlm, or that folder; or a prior artifact."),
    ],
    run: Invocation,
    dtype: Annotated[Precision, DTYPE] = "stored",
) -> None:
    """Make a prior artifact from a released checkpoint, or from the weights of a trained prior.

    Example: cola import downloads/Cola-DLM -o runs/released
    """
    from cola_cli.stages.import_checkpoint import import_checkpoint as stage

    outcome = stage(source, run.output, dtype, run)
    run.show_outcome(outcome, lambda made: [f"{run.output}: {made['parameters']:,} parameters"])


@command()
def export(
    artifact: Annotated[Path, typer.Argument(help="A prior artifact.")],
    output: Annotated[Path, output_option("A new folder.")],
    run: Invocation,
    max_shard_gib: Annotated[
        float, typer.Option("--max-shard-gib", help="Split weights above this size.")
    ] = 5.0,
    dtype: Annotated[Precision, DTYPE] = "stored",
) -> None:
    """Write a prior artifact in the authors' layout, cola_dlm/ and tokenizer.json, to publish or compare.

    Example: cola export runs/demo/prior -o published
    """
    from cola_cli.stages.export import export as stage

    if not 0 <= max_shard_gib < math.inf:
        raise UsageError(f"--max-shard-gib {max_shard_gib} is not a size.", "Give a number of GiB.")
    stage(artifact, output, dtype, int(max_shard_gib * GIBIBYTE))
    run.say([f"{output}: written"], {"path": str(output)})
