"""Floating-point operations that training needs, in closed form, and what the machine can do.

Counted is what the mathematics needs and no more: products of matrices, and attention over the pairs that
the block-causal rule allows. A multiplication with its addition is two operations; a backward pass costs
two forward passes.
"""

from __future__ import annotations

import functools
import time

from cola_cli.models.config import TIMESTEP_CHANNELS, PriorConfig, TextVAEConfig, TransformerConfig

BACKWARD_TOO = 3  # forward and backward


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


def prior_training(config: PriorConfig, rows: int, length: int) -> float:
    """A training step of the prior on `rows` sequences of `length` latents."""
    return BACKWARD_TOO * prior_training_forward(config, rows, length, config.block_size)


def prior_training_forward(config: PriorConfig, rows: int, length: int, block_size: int) -> float:
    """The training pass [clean without its last block | noisy] of `length` latent positions.

    The clean copy of the last layer is needed as keys and values only.
    """
    dim, inner = config.dim, config.heads * config.head_dim
    clean = length - block_size
    blocks = length // block_size
    keys_values = 2 * dim * inner
    block = 4 * dim * inner + 2 * config.expand_ratio * dim * dim
    modulation = 6 * dim * dim
    products = (clean + length) * config.layers * block - clean * (block - keys_values)
    products += (clean + length) * config.latent_dim * dim + length * config.latent_dim * dim
    # one timestep a noisy block, and t = 0 once
    conditioning = (
        TIMESTEP_CHANNELS * dim + 2 * dim * dim + config.layers * modulation + 2 * dim * dim
    )
    products += blocks * conditioning
    clean_pairs = causal_pairs(clean, block_size)
    noisy_pairs = causal_pairs(length, block_size)  # earlier clean blocks and the own noisy block
    pairs = config.layers * noisy_pairs + (config.layers - 1) * clean_pairs
    return 2.0 * (rows * (products + 2 * inner * pairs) + conditioning)


def transformer_forward(
    config: TransformerConfig, rows: int, length: int, head_tokens: float
) -> float:
    """One pass of a baseline over `rows` sequences, the token head on `head_tokens` of each."""
    pairs = causal_pairs(length, 1 if config.causal else length)
    return rows * transformer_pass(config, length, pairs, head_tokens)


def transformer_pass(
    config: TransformerConfig, positions: int, pairs: int, head_tokens: float
) -> float:
    """A baseline's pass of `positions` that see `pairs` others in each layer, a head on `head_tokens`."""
    inner = config.heads * config.head_dim
    layer = 4 * config.dim * inner + 3 * config.dim * config.ffn_dim
    products = positions * config.layers * layer + head_tokens * config.dim * config.vocab_size
    return 2.0 * (products + 2 * inner * config.layers * pairs)


def transformer_training(
    config: TransformerConfig, rows: int, length: int, head_tokens: float
) -> float:
    """A training step of a baseline."""
    return BACKWARD_TOO * transformer_forward(config, rows, length, head_tokens)


@functools.cache  # a study trains many models in one process
def matrix_rate(device: str, bf16: bool, dim: int, rows: int) -> float:
    """Measured operations a second of (rows, dim) x (dim, 4 dim) products on the device; takes 0.3 s."""
    import torch

    dtype = torch.bfloat16 if bf16 else torch.float32
    left = torch.randn(rows, dim, device=device, dtype=dtype)
    right = torch.randn(dim, 4 * dim, device=device, dtype=dtype)
    out = torch.empty(rows, 4 * dim, device=device, dtype=dtype)

    def wait() -> None:
        if left.is_cuda:
            torch.cuda.synchronize()

    best = 0.0
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        wait()
        begin = time.perf_counter()
        for _ in range(4):
            torch.mm(left, right, out=out)
        wait()
        rate = 4 * 2.0 * rows * dim * 4 * dim / (time.perf_counter() - begin)
        best = max(best, rate)
    return best
