"""`cola export`: a prior artifact to a checkpoint in the authors' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.places import require_apart


def export(
    artifact: Path,
    output: Path,
    dtype: Literal["stored", "float32", "bfloat16"],
    max_shard_bytes: int,
) -> None:
    """Write `cola_dlm/` and `tokenizer.json` below `output`; `dtype` is that of the written weights.

    Raises UsageError when `output` is not apart from `artifact`, OutputConflict when it holds anything,
    InputError when `artifact` is not a prior.
    """
    import torch

    from cola_cli.weights.artifact import load_prior, load_vae
    from cola_cli.weights.export import write_checkpoint

    require_apart(output, (artifact,))
    source = Artifact.open(artifact, "prior")
    tokenizer = source.file("tokenizer.json").read_bytes() if source.has("tokenizer.json") else None
    vae, prior = load_vae(source), load_prior(source)
    if dtype != "stored":
        for parameter in (*vae.parameters(), *prior.parameters()):
            parameter.data = parameter.data.to(getattr(torch, dtype))
    write_checkpoint(output, vae, prior, tokenizer, max_shard_bytes)
