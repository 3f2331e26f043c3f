"""cola import, cola export: checkpoints in the authors' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cola_cli.cli.console import print_result
from cola_cli.cli.options import Invocation, command, output_option

GIBIBYTE = 1 << 30


@command("output", "overwrite")
def import_checkpoint(
    folder: Annotated[Path, typer.Argument(help="The folder that holds cola_dlm, or that folder.")],
    run: Invocation,
) -> None:
    """Make a prior artifact of a released checkpoint, tensors byte for byte.

    Example: cola import downloads/Cola-DLM -o runs/released
    """
    from cola_cli.stages.import_checkpoint import import_checkpoint as stage

    outcome = stage(folder, run.output, run)
    run.show_outcome(outcome, lambda made: [f"{run.output}: {made['parameters']:,} parameters"])


@command()
def export(
    artifact: Annotated[Path, typer.Argument(help="A prior artifact.")],
    output: Annotated[Path, output_option("A new folder.")],
    run: Invocation,
    max_shard_gib: Annotated[
        float, typer.Option("--max-shard-gib", min=0.0, help="Split weights above this size.")
    ] = 5.0,
    dtype: Annotated[
        Literal["stored", "float32", "bfloat16"],
        typer.Option("--dtype", help="Precision of the written weights."),
    ] = "stored",
) -> None:
    """Write a prior artifact in the authors' layout, cola_dlm/ and tokenizer.json, to publish or compare.

    Example: cola export runs/demo/prior -o published
    """
    from cola_cli.stages.export import export as stage

    stage(artifact, output, dtype, int(max_shard_gib * GIBIBYTE))
    print_result([f"{output}: written"], {"path": str(output)}, run.json)
