"""What a training run will take, in closed form, before torch is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.settings.engine import Optimizer, Train

FLOAT = 4  # bytes


def training_plan(
    train: Train,
    optim: Optimizer,
    parameters: int,
    flops_per_step: float,
    activations: Callable[[int], float],
    tokens_per_step: int,
) -> dict[str, Any]:
    """Steps, tokens, operations and memory of a run on one process."""
    states = 3 if optim.name == "muon" else 4  # weight, gradient and moments of the matrices
    copies = states + (1 if train.ema_decay else 0)
    rows = train.micro_batch or train.batch_size
    return {
        "parameters": parameters,
        "steps": train.steps,
        "tokens": train.steps * tokens_per_step,
        "flops_per_step": flops_per_step,
        "flops": flops_per_step * train.steps,
        "weights_bytes": parameters * FLOAT,
        "state_bytes": parameters * FLOAT * copies,
        "activation_bytes": activations(rows),
        "memory_bytes": parameters * FLOAT * copies + activations(rows),
    }


def text_vae_activations(
    config: TextVAEConfig, rows: int, length: int, masked_share: float
) -> float:
    """Bytes that the backward pass of the Text VAE needs, float32 (an estimate from counted tensors)."""
    copies = 2 if masked_share else 1
    layers = config.encoder_layers + config.decoder_layers
    block = 16 * config.dim + 3 * config.ffn_dim
    positions = rows * length // config.patch_size * copies
    heads = rows * length * (1 + masked_share) * 3 * config.vocab_size
    return FLOAT * (positions * (layers * block + 6 * config.dim) + heads)


def prior_activations(config: PriorConfig, rows: int, length: int) -> float:
    """Bytes that the backward pass of the prior needs, float32 (an estimate from counted tensors)."""
    positions = rows * (2 * length - config.block_size)
    inner = config.heads * config.head_dim
    block = 8 * config.dim + 8 * inner + 2 * config.expand_ratio * config.dim
    return FLOAT * positions * (config.layers * block + 4 * config.dim)
