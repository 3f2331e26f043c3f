"""`cola export`: a prior artifact to a checkpoint in the authors' layout."""

from __future__ import annotations

from pathlib import Path

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.places import require_apart
from cola_cli.weights.configs import Precision


def export(
    artifact: Path,
    output: Path,
    dtype: Precision,
    max_shard_bytes: int,
) -> None:
    """Write `cola_dlm/` and `tokenizer.json` below `output`; `dtype` is that of the written weights.

    Raises UsageError when `output` is not apart from `artifact`, OutputConflict when it holds anything,
    InputError when `artifact` is not a prior.
    """
    from cola_cli.weights.artifact import load_prior, load_vae, round_weights
    from cola_cli.weights.export import write_checkpoint

    require_apart(output, (artifact,))
    source = Artifact.open(artifact, "prior")
    tokenizer = source.file("tokenizer.json").read_bytes() if source.has("tokenizer.json") else None
    vae, prior = load_vae(source), load_prior(source)
    round_weights(dtype, vae, prior)
    write_checkpoint(output, vae, prior, tokenizer, max_shard_bytes)
