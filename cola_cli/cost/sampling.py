"""What generation takes, in closed form: operations of a prompt, memory of a batch. Needs no torch.

Counts what the samplers do: caches hold what was computed once, the clean block goes through the prior with
the next one, and a guided evaluation takes the block a second time, alone, from its first attention on (a
GPU's fixed shapes take it whole).
"""

from __future__ import annotations

from dataclasses import dataclass

from cola_cli.cost.training import (
    causal_pairs,
    prior_history,
    prior_pass,
    text_vae_decoding,
    text_vae_encoding,
    transformer_pass,
)
from cola_cli.flow.guidance import is_guided
from cola_cli.flow.solvers import chosen_grid, evaluation_times
from cola_cli.models.config import PriorConfig, TextVAEConfig, TransformerConfig
from cola_cli.settings.sample import SamplingOptions

# positions of prompts that go through a network together, or one prompt if it is longer
PORTION = 2048
LENGTH_STEP = 128  # keys: lengths of a GPU's buckets


def cola_sampling(
    vae: TextVAEConfig, prior: PriorConfig, options: SamplingOptions, prompt: int, new: int
) -> float:
    """Continue a prompt of `prompt` tokens by `new` ones, by clean repaint and without an early end."""
    block, patch = prior.block_size, vae.patch_size
    tokens = block * patch
    encoded = text_vae_encoding(vae, 1, -(-prompt // tokens) * tokens)
    prefix, blocks = _blocks(vae, prior, prompt, new)
    grid = chosen_grid(options.steps, options.grid)
    guides = [
        is_guided(t, options.guidance, options.guidance_interval)
        for t in evaluation_times(grid, options.solver)
    ]
    decodes = not (prior.chain and options.takes_likeliest)
    total = encoded + _prefill(vae, prior, prefix, decodes)
    for number in range(blocks):
        history = prefix + number * block
        total += sum(_evaluation(prior, history, guided and history > 0) for guided in guides)
        if number:  # the block before, for the cache
            total += prior_pass(prior, block, block * history) - _head(prior, block)
        if decodes:
            pairs = block * history + causal_pairs(block, vae.block_size)
            total += text_vae_decoding(vae, block, vae.decoder_layers * pairs, tokens)
    return total


def autoregressive_sampling(
    config: TransformerConfig, options: SamplingOptions, prompt: int, new: int
) -> float:
    """Continue a prompt token by token: all but its last token are cached, then a pass a new token.

    The options make no difference; they are there as for the other models.
    """
    cached = transformer_pass(config, prompt - 1, causal_pairs(prompt - 1, 1), 0)
    return cached + sum(transformer_pass(config, 1, prompt + index, 1) for index in range(new))


def masked_diffusion_sampling(
    config: TransformerConfig, options: SamplingOptions, prompt: int, new: int
) -> float:
    """Fill `new` masks behind a prompt, the whole text in each pass."""
    length = prompt + new
    total = 0.0
    for start, stop, passes in options.unmask_blocks(new):
        tokens = stop - start
        one = transformer_pass(config, length, length * length, tokens)
        total += min(passes, tokens) * one  # no pass fills less than a mask
    return total


def _prefill(vae: TextVAEConfig, prior: PriorConfig, prefix: int, decodes: bool) -> float:
    """The prompt's whole blocks into the caches of the prior and, where it `decodes`, of the decoder."""
    if not decodes:
        return prior_history(prior, prefix)
    decoded = vae.decoder_layers * causal_pairs(prefix, vae.block_size)
    return prior_history(prior, prefix) + text_vae_decoding(vae, prefix, decoded, 0)


def _evaluation(prior: PriorConfig, history: int, guided: bool) -> float:
    """The velocity of a block behind `history` latents, and of the block alone when guided."""
    block = prior.block_size
    own = prior_pass(prior, block, block * (history + block))
    if prior.chain:  # it and the head are asked for one group of the block
        own -= _head(prior, block - prior.group_size)
    if not guided:
        return own
    # up to their first attention both blocks are one
    shared = 2.0 * block * prior.dim * (3 * prior.heads * prior.head_dim + prior.latent_dim)
    return own + prior_pass(prior, block, block * block) - shared


def _head(prior: PriorConfig, positions: int) -> float:
    """What comes after the blocks of the network."""
    return 2.0 * positions * (prior.end_products() - prior.dim * prior.latent_dim)


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


def _blocks(vae: TextVAEConfig, prior: PriorConfig, prompt: int, new: int) -> tuple[int, int]:
    """Latents of a prompt's whole blocks, and the blocks that are generated behind them."""
    block, patch = prior.block_size, vae.patch_size
    prefix = -(-prompt // patch) // block * block
    return prefix, -(-(new + prompt - prefix * patch) // (block * patch))


def cache_bytes(vae: TextVAEConfig, prior: PriorConfig, load: Load) -> int:
    """Keys and values of prior and decoder."""
    prefix, blocks = _blocks(vae, prior, load.prompt, load.new)
    rows, length = load.rows, prefix + blocks * prior.block_size
    decoder = 2 * vae.decoder_layers * vae.dim * rows * length
    if load.static:
        rows, length = row_bucket(rows), length_bucket(length)
    return load.width * (decoder + 2 * prior.layers * prior.heads * prior.head_dim * rows * length)


def workspace_bytes(vae: TextVAEConfig, prior: PriorConfig, load: Load) -> int:
    """The modulation table and packed weights, and what the largest of the phases holds at its peak."""
    dim, inner, hidden = prior.dim, prior.heads * prior.head_dim, prior.expand_ratio * prior.dim
    table = (load.evaluations + 1) * (6 * prior.layers + 2) * dim
    layers = prior.layers * (4 * dim * inner + 2 * dim * hidden)
    decoder = vae.decoder_layers * (4 * vae.dim**2 + 3 * vae.dim * vae.ffn_dim // 2)
    decoder += vae.dim * (vae.vocab_size + vae.patch_size * vae.dim)
    packed = layers + decoder if load.packed else 0
    prompts = min(load.rows * load.prompt, max(PORTION, load.prompt))
    encode = prompts * max(2 * vae.dim + 2 * vae.ffn_dim, 11 * vae.dim)
    kept = 2 * inner * prior.layers  # keys and values beside the cache
    prefill = prompts // vae.patch_size * (kept + max(3 * dim + 2 * hidden, 3 * dim + 9 * inner))
    entries = 3 * load.rows * prior.block_size  # committed, conditional and unconditional
    velocity = entries * (8 * dim + max(dim + hidden, 7 * inner))
    tokens = load.rows * prior.block_size * vae.patch_size
    logits = tokens * (vae.vocab_size * (4 if load.width == 4 else 6) // load.width + 2 * vae.dim)
    return load.width * (table + packed + max(encode, prefill, velocity, logits))
