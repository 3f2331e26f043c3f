"""Small objectives and rows for the tests of training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cola_cli.corpus.sequences import Rows
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.vae import VAESettings
from cola_cli.training.objectives.flow_matching import FlowMatching, JointTraining
from cola_cli.training.objectives.objective import Batch, Objective
from cola_cli.training.objectives.text_vae import TextVAEObjective
from cola_cli.training.reader import make_step, scaled

VOCABULARY, LENGTH, CHANNELS, BLOCK = 11, 12, 4, 4
VAE = TextVAEConfig(
    vocab_size=VOCABULARY,
    encoder_layers=1,
    decoder_layers=1,
    dim=16,
    ffn_dim=24,
    latent_dim=CHANNELS,
    heads=2,
)
PRIOR = PriorConfig(
    latent_dim=CHANNELS, dim=16, heads=2, head_dim=8, rope_dim=6, layers=2, block_size=BLOCK
)


def randomise(network: nn.Module, seed: int) -> None:
    """No weight zero, none degenerate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def rows(count: int = 3, seed: int = 0) -> Rows:
    """Random sequences with random reference posteriors; the last one is padded."""
    random = np.random.default_rng(seed)
    lengths = np.full(count, LENGTH)
    lengths[-1] = LENGTH - 3
    return Rows(
        np.arange(count),
        random.integers(0, VOCABULARY, (count, LENGTH)),
        lengths,
        random.standard_normal((count, LENGTH, CHANNELS)).astype(np.float16),
        (random.standard_normal((count, LENGTH, CHANNELS)) - 3).astype(np.float16),
    )


def chats(seed: int = 0) -> Rows:
    """The sequences of `rows` with answers in them, two in some blocks; the last one's are cut by padding."""
    answers = ["..1.11.11...", ".....1111111", ".11111.11111"]
    response = np.array([[mark == "1" for mark in row] for row in answers])
    return dataclasses.replace(rows(seed=seed), response=response)


def packed(seed: int = 0) -> Rows:
    """The sequences of `chats` in pieces that do not see one another, some with padding behind them."""
    marks = ["111a22222222", "1111111a2222", "1aaa22223ccc"]
    numbers = {"1": 1, "2": 2, "3": 3, "a": -1, "c": -3}
    pieces = np.array([[numbers[mark] for mark in row] for row in marks])
    return dataclasses.replace(chats(seed), pieces=pieces)


def vae_objective(**changes: Any) -> TextVAEObjective:
    """Stage 1, float64, random weights."""
    objective = TextVAEObjective(TextVAE(VAE), VAESettings.model_validate(changes), LENGTH)
    randomise(objective, 1)
    return objective.double()


def prior_objective(**changes: Any) -> FlowMatching:
    """Stage 2 frozen, or joint with mode="joint"; float64, random weights."""
    settings = PriorSettings.model_validate(changes)
    changed = settings.model.model_dump(exclude_unset=True)
    head = VOCABULARY if settings.model.prediction == "tokens" else 0
    config = PRIOR.model_copy(update=changed | {"vocab_size": head})
    prior, variance = Prior(config), np.ones(CHANNELS)
    if settings.mode == "joint":
        joint = JointTraining(prior, TextVAE(VAE), settings, variance, LENGTH)
        randomise(joint, 2)
        return joint.double()
    decoder = None
    if settings.loss.decoder:
        decoder = TextVAE(VAE).double()
        randomise(decoder, 3)
    frozen = FlowMatching(prior, settings, variance, LENGTH, VAE, decoder)
    randomise(frozen, 2)
    if head:
        source = torch.Generator().manual_seed(4)
        prior.codes.normal_(generator=source)
        prior.code_variance.uniform_(0.1, 0.5, generator=source)
    return frozen.double()


def batch_of(objective: Objective, data: Rows, step: int = 0) -> Batch:
    """One float64 batch with its weights scaled, as the loop makes it."""
    made = make_step(objective, data, list(range(len(data))), step, 5, len(data))
    batch = {name: _double(value) for name, value in made.batches[0].items()}
    return scaled(batch, made.counts, 1)


def gradients(objective: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by parameter name; zero where there is none."""
    names, parameters = zip(*objective.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }


def _double(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if is_float else value
