"""Operations in closed form against PyTorch's own count of what really runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cola_cli.corpus.sequences import Rows
from cola_cli.models.config import PriorConfig, TextVAEConfig, TransformerConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.models.transformer import Transformer
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.vae import VAESettings
from cola_cli.training.baselines import MaskedDiffusion, NextToken
from cola_cli.training.objectives import Objective
from cola_cli.training.prior import FlowMatching, JointTraining
from cola_cli.training.reader import make_step, scaled, to_device
from cola_cli.training.text_vae import TextVAEObjective

ROWS, LENGTH = 8, 16
VAE = TextVAEConfig(
    vocab_size=300, encoder_layers=2, decoder_layers=2, dim=192, ffn_dim=768, heads=4, latent_dim=8
)
PRIOR = PriorConfig(
    latent_dim=8, dim=192, heads=4, head_dim=48, rope_dim=24, layers=3, block_size=4
)
SIZES = {"vocab_size": 300, "layers": 3, "dim": 192, "ffn_dim": 512, "heads": 4, "head_dim": 48}


def objective(name: str) -> Objective:
    if name in ("autoregressive", "llada"):
        network = Transformer(TransformerConfig(causal=name == "autoregressive", **SIZES))
        return NextToken(network, LENGTH) if network.config.causal else _masked(network)
    if name == "vae":
        return TextVAEObjective(TextVAE(VAE), VAESettings(), LENGTH)
    settings = PriorSettings.model_validate({"mode": name, "data": {"partly_clean": 0}})
    variance = np.ones(VAE.latent_dim)
    prior = Prior(PRIOR)
    if name == "frozen":
        return FlowMatching(prior, settings, variance, LENGTH, VAE)
    return JointTraining(prior, TextVAE(VAE), settings, variance, LENGTH)


def _masked(network: Transformer) -> Objective:
    return MaskedDiffusion(network, LENGTH, 1e-3)


def sequences() -> Rows:
    random = np.random.default_rng(0)
    latents = random.standard_normal((ROWS, LENGTH, VAE.latent_dim)).astype(np.float16)
    tokens = random.integers(0, 300, (ROWS, LENGTH))
    return Rows(np.arange(ROWS), tokens, np.full(ROWS, LENGTH), latents, latents - 3)


@pytest.mark.parametrize("name", ["vae", "frozen", "joint", "autoregressive", "llada"])
def test_a_training_step_takes_the_operations_that_are_counted(name: str) -> None:
    made = objective(name)
    step = make_step(made, sequences(), list(range(ROWS)), 0, 0, ROWS, 0)
    # the math kernel, as the counter does not know the others; it computes what masks forbid as well
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for drawn in step.batches:
            batch = scaled(drawn, step.counts, 1)
            loss: Tensor = made(to_device(batch, torch.device("cpu")))["loss"]
            loss.backward()
    assert counter.get_total_flops() == pytest.approx(made.flops(ROWS), rel=0.02)
