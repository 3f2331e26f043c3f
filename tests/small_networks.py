"""A Text VAE and a prior of a few thousand weights, at random but not as they are initialised."""

from __future__ import annotations

from typing import Any

import torch

from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE

BLOCK = 4


def small_networks(seed: int, vocabulary: int, **shape: Any) -> tuple[TextVAE, Prior]:
    """Networks over so many tokens; `shape` are settings of the prior, such as what it predicts."""
    torch.manual_seed(seed)
    vae = TextVAE(
        TextVAEConfig(
            vocab_size=vocabulary, encoder_layers=1, decoder_layers=1, dim=32, ffn_dim=48, heads=2,
            latent_dim=8,
        )
    )  # fmt: skip
    sizes = {"latent_dim": 8, "dim": 48, "heads": 2, "head_dim": 32, "rope_dim": 16, "layers": 2}
    prior = Prior(PriorConfig(block_size=BLOCK, **sizes, **shape))
    with torch.no_grad():
        for parameter in (*vae.parameters(), *prior.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if prior.config.prediction == "tokens":
            prior.codes.normal_()
            prior.code_variance.uniform_(0.1, 0.5)
    return vae.eval(), prior.eval()
