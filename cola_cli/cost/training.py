"""What a training step takes, in closed form: parameters, floating-point operations, memory. Needs no torch.

Counts only what the mathematics needs: products of matrices, and attention over the pairs that the
block-causal rule allows. A multiplication with its addition is two operations; a backward pass costs two
forward passes. Memory is that of the tensors which the backward pass of the code keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cola_cli.cost import Data
from cola_cli.models.config import (
    LEVELS,
    TIMESTEP_CHANNELS,
    PriorConfig,
    TextVAEConfig,
    TransformerConfig,
)
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.distill import DistillSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.training import Lora, Mask, Optimizer, Train
from cola_cli.settings.vae import VAESettings

BACKWARD_TOO = 3  # forward and backward
FLOAT = 4  # bytes
# Under bf16 autocast matrices keep half precision for the backward pass, norms and rotations float32.
BF16_SHARE = 0.57
# The C allocator of a CPU process holds more than what is alive: measured 1.40 to 1.44 for both networks.
CPU_SLACK = 1.4
HEAD_COPIES = 3  # of the logits at the loss: themselves, their log-softmax, its gradient


@dataclass(frozen=True)
class Cost:
    """What training a model takes.

    parameters: of its networks. core_parameters: without embeddings and head, as the paper counts and
    matches models. flops: operations of a step on the global batch, adapters left out. activations: float32
    bytes that the backward pass of a micro-batch keeps. adapters: weights that are trained instead of
    `parameters`; 0: those are.
    """

    parameters: int
    core_parameters: int
    flops: float
    activations: float
    adapters: int = 0


@dataclass(frozen=True)
class Place:
    """Where a run is planned for.

    bf16: its precision. held_bytes: in use before training begins. gradients: of shares of a batch, held at
    once beside their sum.
    """

    device: str
    bf16: bool
    held_bytes: float
    gradients: int = 0


def training_plan(
    cost: Cost, train: Train, optim: Optimizer, place: Place, length: int
) -> dict[str, Any]:
    """Steps, tokens, operations and memory of a run on one process, `length` tokens a sequence."""
    # weight, gradient and moments; Muon keeps one moment of the matrices, which are nearly everything
    copies = (3 if optim.name == "muon" else 4) + (1 if train.ema_decay else 0) + place.gradients
    trained = cost.adapters or cost.parameters
    state = trained * FLOAT * copies + (cost.parameters * FLOAT if cost.adapters else 0)
    kept = trained * FLOAT * (copies - 1 - place.gradients)  # all but the gradients
    held = cost.activations * (BF16_SHARE if place.bf16 else 1.0)
    held *= CPU_SLACK if place.device == "cpu" else 1.0
    return {
        "device": place.device,
        "parameters": cost.parameters,
        **({"adapters": cost.adapters} if cost.adapters else {}),
        "steps": train.steps,
        "tokens": train.steps * train.batch_size * length,
        "flops_per_step": cost.flops,
        "flops": cost.flops * train.steps,
        "state_bytes": float(state),
        "activation_bytes": held,
        "kept_bytes": float(kept) if train.keep_state else 0.0,
        "memory_bytes": state + held + place.held_bytes,
    }


def text_vae_cost(config: TextVAEConfig, data: Data, settings: VAESettings) -> Cost:
    """Training the Text VAE, the masked copy included."""
    parameters, masked = config.parameter_count(), _masked_share(settings.mask)
    operations = text_vae_training(config, settings.train.batch_size, data.length, masked)
    activations = text_vae_activations(config, settings.train, data.length, masked)
    return Cost(parameters, parameters, operations, activations)


def prior_cost(config: PriorConfig, data: Data, settings: PriorSettings) -> Cost:
    """Training the prior, and the VAE with it in joint mode.

    The reference posterior is read from the latents and costs nothing. Block sizes other than the model's
    count as its own, and a token head counts at every position, also where the stagger asks for none.
    """
    train, positions = settings.train, data.positions
    rows, copies = train.batch_size, settings.data.noisy_copies * settings.data.noisy_share
    parameters, core = config.parameter_count(), config.core_parameter_count()
    noisy = (
        copies * rows * prior_pass(config, positions, causal_pairs(positions, config.block_size))
    )
    # timesteps: t = 0, and of every noisy block, or of every level
    levels = LEVELS if config.stagger else int(rows * copies * positions / config.block_size)
    foretold = bool(config.vocab_size and settings.loss.next_token)
    passes = rows * prior_history(config, positions - config.block_size, foretold) + noisy
    passes += prior_conditioning(config, 1 + levels)
    operations = BACKWARD_TOO * passes
    operations += noisy if config.self_conditioning else 0  # a first estimate, without gradient
    activations = prior_activations(config, train, positions, copies, foretold)
    if settings.mode == "frozen" and settings.loss.decoder:
        vae = data.encoder.model_copy(update={"encoder_layers": 0})  # the decoder alone
        pairs = vae.decoder_layers * causal_pairs(positions, vae.block_size)
        read = text_vae_decoding(vae, positions, pairs, data.length)
        operations += 2 * copies * rows * read  # there and back, without gradients of its weights
        activations += copies * text_vae_activations(vae, train, data.length, 0)
    if settings.mode == "joint":
        masked = _masked_share(settings.mask)
        parameters += data.encoder.parameter_count()
        operations += text_vae_training(data.encoder, rows, data.length, masked)
        activations += text_vae_activations(data.encoder, train, data.length, masked)
    adapters, sums = _adapters(config, settings.lora, train, 2)  # of the clean and the noisy copy
    return Cost(parameters, core, operations, activations + sums, adapters)


def distillation_cost(config: PriorConfig, data: Data, settings: DistillSettings) -> Cost:
    """Distilling a prior: the teacher's steps forward, the student's passes forward and backward, both behind
    clean histories of their own."""
    train, teacher = settings.train, settings.teacher
    rows, positions = train.batch_size, data.positions
    block = config.block_size
    clean = rows * prior_history(config, positions - block)
    noisy = rows * prior_pass(config, positions, causal_pairs(positions, block))
    guided = teacher.guidance != 1.0  # each block once more, without what is before it
    alone = rows * prior_pass(config, positions, positions * block) if guided else 0
    times = (teacher.steps * config.block_size if config.stagger else teacher.steps) + 1
    both = clean + prior_conditioning(config, times)
    passes = 1 if config.chain else settings.passes  # a chain's are taken in turn, one a step
    operations = BACKWARD_TOO * (both + passes * noisy)
    if not config.chain:
        operations += both + teacher.steps * (noisy + alone)
    activations = prior_activations(config, train, positions, passes)
    parameters, core = config.parameter_count(), config.core_parameter_count()
    return Cost(parameters, core, operations, activations)


def transformer_cost(config: TransformerConfig, data: Data, settings: BaselineSettings) -> Cost:
    """Training a baseline. Causal: every token but the last is passed, and predicts the one after it.

    Else all are passed, and the half that is masked on average is predicted.
    """
    train = settings.train
    passed = data.length - 1 if config.causal else data.length
    predicted = passed if config.causal else passed / 2
    pairs = causal_pairs(passed, 1 if config.causal else passed)
    adapters, sums = _adapters(config, settings.lora, train, 1)
    return Cost(
        parameters=config.parameter_count(),
        core_parameters=config.core_parameter_count(),
        flops=BACKWARD_TOO * train.batch_size * transformer_pass(config, passed, pairs, predicted),
        activations=transformer_activations(config, train, passed, predicted / passed) + sums,
        adapters=adapters,
    )


def _adapters(
    config: PriorConfig | TransformerConfig, lora: Lora, train: Train, passes: int
) -> tuple[int, float]:
    """Weights of the adapters, and float32 bytes of the sums with them that the backward pass keeps."""
    if not lora.rank:
        return 0, 0.0
    dim, inner = config.dim, config.heads * config.head_dim
    shapes = [(dim, 3 * inner), (inner, dim)]
    if lora.targets == "blocks":
        if isinstance(config, PriorConfig):
            shapes += [(dim, config.expand_ratio * dim), (config.expand_ratio * dim, dim)]
        else:
            shapes += [(dim, 2 * config.ffn_dim), (config.ffn_dim, dim)]
    sums = sum(columns * rows for columns, rows in shapes)
    kept = 1 if train.activation_checkpointing else passes * config.layers
    count = lora.rank * config.layers * sum(columns + rows for columns, rows in shapes)
    return count, float(FLOAT * kept * sums)


def _masked_share(mask: Mask) -> float:
    return mask.fraction if mask.weight else 0.0


def causal_pairs(length: int, block_size: int) -> int:
    """Query-key pairs of `length` positions, bidirectional in a block and causal across blocks."""
    blocks = length // block_size
    return block_size * block_size * blocks * (blocks + 1) // 2


def text_vae_forward(config: TextVAEConfig, rows: int, length: int, head_tokens: float) -> float:
    """One pass of `rows` sequences of `length` tokens, the token head on `head_tokens` of each."""
    positions = length // config.patch_size
    layers = config.decoder_layers * causal_pairs(positions, config.block_size)
    decoding = text_vae_decoding(config, rows * positions, rows * layers, rows * head_tokens)
    return text_vae_encoding(config, rows, length) + decoding


def text_vae_encoding(config: TextVAEConfig, rows: float, length: int) -> float:
    """The encoder on `rows` sequences of `length` tokens."""
    positions = length // config.patch_size
    dim, layers = config.dim, config.encoder_layers
    ends = dim * dim * config.patch_size + 2 * dim * config.latent_dim
    products = positions * (layers * _text_vae_block(config) + ends)
    attention = 2 * layers * dim * causal_pairs(positions, config.block_size)
    return 2.0 * rows * (products + attention)


def text_vae_decoding(
    config: TextVAEConfig, positions: float, pairs: float, head_tokens: float
) -> float:
    """The decoder on `positions` latents that see `pairs` others (summed over the layers)."""
    dim = config.dim
    ends = dim * dim * config.patch_size + dim * config.latent_dim
    products = positions * (config.decoder_layers * _text_vae_block(config) + ends)
    return 2.0 * (products + head_tokens * dim * config.vocab_size + 2 * dim * pairs)


def _text_vae_block(config: TextVAEConfig) -> int:
    dim = config.dim
    return 4 * dim * dim + dim * config.ffn_dim + dim * config.ffn_dim // 2


def text_vae_training(config: TextVAEConfig, rows: int, length: int, masked_share: float) -> float:
    """A training step of the Text VAE: the clean copy, and a masked one unless no token is masked."""
    forward = text_vae_forward(config, rows, length, length)
    if masked_share:
        forward += text_vae_forward(config, rows, length, masked_share * length)
    return BACKWARD_TOO * forward


def prior_history(config: PriorConfig, length: int, foretold: bool = False) -> float:
    """The pass of `length` clean latents as the history of later ones.

    Of the last layer only keys and values are needed, unless what follows is `foretold` or there is evidence.
    """
    inner, block = config.heads * config.head_dim, prior_block(config)
    products = config.layers * block + config.latent_dim * config.dim
    whole = foretold or config.evidence
    products += config.out_dim * config.dim * foretold
    products += 0 if whole else 2 * config.dim * inner - block
    products += config.evidence_products() // 2  # the nearest code
    layers = config.layers if whole else config.layers - 1
    pairs = layers * causal_pairs(length, config.history_block)
    return 2.0 * (length * products + 2 * inner * pairs)


def prior_pass(config: PriorConfig, positions: int, pairs: int) -> float:
    """The pass of `positions` that see `pairs` others in each layer."""
    products = config.layers * prior_block(config) + config.end_products()
    products += config.evidence_products() // 2  # the nearest code
    inner = config.heads * config.head_dim
    return 2.0 * (positions * products + 2 * inner * config.layers * pairs)


def prior_conditioning(config: PriorConfig, timesteps: int) -> float:
    """The modulations of a number of timesteps."""
    dim = config.dim
    return (
        2.0 * timesteps * (TIMESTEP_CHANNELS * dim + 4 * dim * dim + config.layers * 6 * dim * dim)
    )


def prior_block(config: PriorConfig) -> int:
    """Multiplications of one block of the network at a position, without those of its attention."""
    dim, inner = config.dim, config.heads * config.head_dim
    return 4 * dim * inner + 2 * config.expand_ratio * dim * dim


def transformer_pass(
    config: TransformerConfig, positions: int, pairs: int, head_tokens: float
) -> float:
    """A baseline's pass of `positions` that see `pairs` others in each layer, a head on `head_tokens`."""
    inner = config.heads * config.head_dim
    layer = 4 * config.dim * inner + 3 * config.dim * config.ffn_dim
    products = positions * config.layers * layer + head_tokens * config.dim * config.vocab_size
    return 2.0 * (products + 2 * inner * config.layers * pairs)


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


def prior_activations(
    config: PriorConfig, train: Train, length: int, copies: float = 1, foretold: bool = False
) -> float:
    """Bytes that the backward pass of the prior keeps, float32, from the tensors of the code."""
    rows = train.micro_batch or train.batch_size
    positions = rows * ((1 + copies) * length - config.block_size)
    inner = config.heads * config.head_dim
    block = 8 * config.dim + 8 * inner + 2 * config.expand_ratio * config.dim
    kept = config.layers * block
    if train.activation_checkpointing:
        kept = block + config.layers * (config.dim + 2 * inner)
    head = rows * (copies + foretold) * length * HEAD_COPIES * config.vocab_size
    return FLOAT * (positions * (kept + 4 * config.dim) + head)


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
