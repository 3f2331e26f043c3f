"""`cola diagnose vae`: what the latents of a trained Text VAE are like."""

from __future__ import annotations

from pathlib import Path

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.kinds import Tokens
from cola_cli.errors import InputError
from cola_cli.evaluation.diagnosis import Diagnosis
from cola_cli.machine.threads import prepare_torch

BATCH = 32
WEIGHTS = "vae/model.safetensors"


def diagnose_vae(
    model: Path, tokens: Path, split: str, sequences: int, threads: int | None = None
) -> Diagnosis:
    """The diagnosis of the VAE in a vae, latents or prior artifact, over at most `sequences` of a split.

    Raises InputError when there is no VAE, its vocabulary is too small, or its posterior is not finite.
    """
    prepare_torch(threads)
    from cola_cli.corpus.sequences import Sequences
    from cola_cli.evaluation.vae_diagnostics import diagnose
    from cola_cli.weights.artifact import load_vae

    opened = Artifact.open(model)
    if not opened.has(WEIGHTS):
        raise InputError(f"{model} has no VAE.", "Name a vae, latents or prior artifact.")
    source = Tokens.open(tokens)
    network = load_vae(opened)
    if network.config.vocab_size < source.statistics.vocab_size:
        raise InputError(
            f"{tokens} has a larger vocabulary than {model}.", "Name the tokens it was trained on."
        )
    try:
        return diagnose(network, Sequences(source, split).batches(BATCH, sequences))
    except FloatingPointError as error:
        raise InputError(
            f"{opened.file(WEIGHTS)}: the posterior has means that are all zero, or numbers that are infinite"
            " or NaN.",
            "Train the VAE again.",
        ) from error
