"""What a training run will take, in closed form: parameters, operations, memory, steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cola_cli.machine.threads import peak_memory
from cola_cli.models.config import PriorConfig, TextVAEConfig, TransformerConfig
from cola_cli.settings.training import Optimizer, Train

FLOAT = 4  # bytes
# Under bf16 autocast matrices keep half precision for the backward pass, norms and rotations float32.
BF16_SHARE = 0.57
# The C allocator of a CPU process holds more than what is alive: measured 1.40 to 1.44 for both networks.
CPU_SLACK = 1.4
HEAD_COPIES = 3  # of the logits at the loss: themselves, their log-softmax, its gradient


@dataclass(frozen=True)
class Machine:
    """Where a run is planned for."""

    device: str
    bf16: bool
    held_bytes: float  # before training begins: the process itself, on a CPU


def machine(device: str, train: Train) -> Machine:
    """What a --device flag means here. Imports torch, as training will."""
    from cola_cli.machine.processes import pick_device

    chosen = pick_device(device)
    bf16 = train.precision == "bf16" or (train.precision == "auto" and chosen.type == "cuda")
    return Machine(str(chosen), bf16, 0.0 if chosen.type == "cuda" else peak_memory())


def training_plan(
    train: Train,
    optim: Optimizer,
    place: Machine,
    parameters: int,
    flops_per_step: float,
    activations: float,
    tokens_per_step: int,
) -> dict[str, Any]:
    """Steps, tokens, operations and memory of a run on one process; `activations` in float32 bytes."""
    # weight, gradient and moments; Muon keeps one moment of the matrices, which are nearly everything
    copies = (3 if optim.name == "muon" else 4) + (1 if train.ema_decay else 0)
    state = parameters * FLOAT * copies
    held = activations * (BF16_SHARE if place.bf16 else 1.0)
    held *= CPU_SLACK if place.device == "cpu" else 1.0
    return {
        "device": place.device,
        "parameters": parameters,
        "steps": train.steps,
        "tokens": train.steps * tokens_per_step,
        "flops_per_step": flops_per_step,
        "flops": flops_per_step * train.steps,
        "state_bytes": float(state),
        "activation_bytes": held,
        "memory_bytes": state + held + place.held_bytes,
    }


def text_vae_activations(
    config: TextVAEConfig, train: Train, length: int, masked_share: float
) -> float:
    """Bytes that the backward pass of the Text VAE keeps, float32, from the tensors of the code."""
    rows = train.micro_batch or train.batch_size
    positions = rows * length // config.patch_size * (2 if masked_share else 1)
    layers = config.encoder_layers + config.decoder_layers
    block = 12 * config.dim + 2 * config.ffn_dim
    kept = block + layers * config.dim if train.activation_checkpointing else layers * block
    head = rows * length * (1 + masked_share) * HEAD_COPIES * config.vocab_size
    return FLOAT * (positions * (kept + 4 * config.dim) + head)


def prior_activations(config: PriorConfig, train: Train, length: int) -> float:
    """Bytes that the backward pass of the prior keeps, float32, from the tensors of the code."""
    rows = train.micro_batch or train.batch_size
    positions = rows * (2 * length - config.block_size)
    inner = config.heads * config.head_dim
    block = 8 * config.dim + 8 * inner + 2 * config.expand_ratio * config.dim
    kept = config.layers * block
    if train.activation_checkpointing:
        kept = block + config.layers * (config.dim + 2 * inner)
    return FLOAT * positions * (kept + 4 * config.dim)


def transformer_activations(
    config: TransformerConfig, train: Train, length: int, head_share: float
) -> float:
    """Bytes that the backward pass of a baseline keeps, float32, from the tensors of the code."""
    rows = train.micro_batch or train.batch_size
    positions = rows * length
    inner = config.heads * config.head_dim
    block = 4 * config.dim + 6 * inner + 4 * config.ffn_dim
    kept = config.layers * block
    if train.activation_checkpointing:
        kept = block + config.layers * config.dim
    head = head_share * HEAD_COPIES * config.vocab_size
    return FLOAT * positions * (kept + 2 * config.dim + head)
