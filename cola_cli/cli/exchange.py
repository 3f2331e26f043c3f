"""cola import, export: checkpoints in the authors' layout; cola pull, push: models on a hub."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from cola_cli.cli.options import MODEL, Invocation, command, output_option
from cola_cli.errors import UsageError

GIBIBYTE = 1 << 30
Precision = Literal["stored", "float32", "bfloat16"]
DTYPE = typer.Option("--dtype", help="Precision of the written weights.")


@command("output", "overwrite")
def import_checkpoint(
    source: Annotated[
        Path,
        MODEL,
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
    artifact: Annotated[Path, MODEL, typer.Argument(help="A prior artifact.")],
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


@command()
def pull(
    run: Invocation,
    model: Annotated[
        Path, MODEL, typer.Argument(help="Such as hf:org/name, hf:org/name@revision.")
    ],
) -> None:
    """Fetch a model from the hub into its cache, where every command finds it by the same name.

    Commands fetch what they need by themselves; this is for machines that will be offline.

    Example: cola pull hf:ByteDance-Seed/Cola-DLM
    """
    from cola_cli.artifacts.origin import published
    from cola_cli.weights.folder import require_folder

    require_folder(model)
    address = published(model)
    run.say([str(model)], {"path": str(model), "address": address})


@command()
def push(
    run: Invocation,
    model: Annotated[
        Path, MODEL, typer.Argument(help="An artifact of a model, or a checkpoint folder.")
    ],
    address: Annotated[str, typer.Argument(help="The repository: hf:org/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="If it is made now, only you see it.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option("--license", help="For the card, as the hub names it: apache-2.0 ..."),
    ] = None,
) -> None:
    """Publish a model on the hub with a model card, in one commit; the repository is made if it is missing.

    Log in before with `hf auth login`, or set HF_TOKEN.

    Example: cola push runs/demo/prior hf:me/stories
    """
    from cola_cli.stages.publish import push as stage

    made = stage(model, address, private, license)
    run.say([made], {"address": made})
