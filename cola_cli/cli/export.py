"""cola export: an artifact in the released layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cola_cli.cli import options
from cola_cli.cli.console import print_result

GIBIBYTE = 1 << 30


def export(
    artifact: Annotated[Path, typer.Argument(help="A prior artifact.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    max_shard_gib: Annotated[
        float, typer.Option("--max-shard-gib", min=0.0, help="Split weights above this size.")
    ] = 5.0,
    dtype: Annotated[
        Literal["stored", "float32", "bfloat16"],
        typer.Option("--dtype", help="Precision of the written weights."),
    ] = "stored",
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a prior artifact in the authors' layout, cola_dlm/ and tokenizer.json, to publish or compare.

    Example: cola export runs/demo/prior -o published
    """
    import torch

    from cola_cli.artifacts import Artifact
    from cola_cli.weights.artifact import load_prior, load_vae
    from cola_cli.weights.export import write_checkpoint

    source = Artifact.open(artifact, "prior")
    tokenizer = source.file("tokenizer.json").read_bytes() if source.has("tokenizer.json") else None
    vae, prior = load_vae(source), load_prior(source)
    if dtype != "stored":
        for parameter in (*vae.parameters(), *prior.parameters()):
            parameter.data = parameter.data.to(getattr(torch, dtype))
    write_checkpoint(output, vae, prior, tokenizer, int(max_shard_gib * GIBIBYTE))
    print_result([f"{output}: written"], {"path": str(output)}, json)
