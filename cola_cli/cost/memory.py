"""The memory that generation takes beside the weights, in closed form. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cola_cli.models.config import PriorConfig, TextVAEConfig

PORTION = (
    2048  # positions of prompts that go through a network together, or one prompt if it is longer
)


LENGTH_STEP = 128  # keys: lengths of a GPU's buckets


def row_bucket(rows: int) -> int:
    """The next power of two."""
    return 1 << (rows - 1).bit_length()


def length_bucket(length: int) -> int:
    """The next multiple of LENGTH_STEP."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


@dataclass(frozen=True)
class Load:
    """What is generated: `rows` prompts at a time, the longest with `prompt` tokens, `new` more for each.

    evaluations: velocities of a block. width: bytes of a weight. packed: whether weights are packed, as they
    are for a CPU. static: whether shapes are those of buckets, as they are on a GPU.
    """

    rows: int
    prompt: int
    new: int
    evaluations: int
    width: int
    packed: bool
    static: bool = False


def cached_positions(vae: TextVAEConfig, prior: PriorConfig, prompt: int, new: int) -> int:
    """Latents of a row in the caches when its last block is there."""
    block, patch = prior.block_size, vae.patch_size
    prefix = -(-prompt // patch) // block * block
    blocks = -(-(new + prompt - prefix * patch) // (block * patch))
    return prefix + blocks * block


def cache_bytes(vae: TextVAEConfig, prior: PriorConfig, load: Load) -> int:
    """Keys and values of prior and decoder."""
    rows, length = load.rows, cached_positions(vae, prior, load.prompt, load.new)
    decoder = 2 * vae.decoder_layers * vae.dim * rows * length
    if load.static:
        rows, length = row_bucket(rows), length_bucket(length)
    return load.width * (decoder + 2 * prior.layers * prior.heads * prior.head_dim * rows * length)


def workspace_bytes(vae: TextVAEConfig, prior: PriorConfig, load: Load) -> int:
    """The modulation table and packed weights, and what the largest of the phases holds at its peak."""
    dim, inner, hidden = prior.dim, prior.heads * prior.head_dim, prior.expand_ratio * prior.dim
    table = (load.evaluations + 1) * (6 * prior.layers + 2) * dim
    packed = prior.layers * (4 * dim * inner + 2 * dim * hidden) if load.packed else 0
    prompts = min(load.rows * load.prompt, max(PORTION, load.prompt))
    encode = prompts * max(2 * vae.dim + 2 * vae.ffn_dim, 11 * vae.dim)
    kept = 2 * inner * prior.layers  # keys and values beside the cache
    prefill = prompts // vae.patch_size * (kept + max(3 * dim + 2 * hidden, 3 * dim + 9 * inner))
    entries = 3 * load.rows * prior.block_size  # committed, conditional and unconditional
    velocity = entries * (8 * dim + max(dim + hidden, 7 * inner))
    tokens = load.rows * prior.block_size * vae.patch_size
    logits = tokens * (vae.vocab_size * (4 if load.width == 4 else 6) // load.width + 2 * vae.dim)
    return load.width * (table + packed + max(encode, prefill, velocity, logits))
