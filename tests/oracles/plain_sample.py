"""Block-by-block generation, written plainly from the paper: what the sampling engine is measured against.

As in the released loop the batch is flattened to one axis with one dense mask, conditional and unconditional
passes are apart, a further pass commits each block, AdaLN is computed per token, keys are cached before
rotation and the whole cache is rotated at each pass, caches grow by concatenation, and attention is scores,
mask, softmax and sum (or, with `fused`, torch's fused kernel under the same mask). Greedy tokens; prompts of
whole blocks. Same mathematics and weights as cola's, nothing clever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.models.config import PriorConfig, TextVAEConfig
from tests.oracles.plain_train import attention, rotate

Weights = Mapping[str, Tensor]


@dataclass
class Caches:
    """Keys and values of each layer and sample, as lists of (length, H, head_dim)."""

    keys: list[list[Tensor]] = field(default_factory=list)
    values: list[list[Tensor]] = field(default_factory=list)

    @classmethod
    def empty(cls, layers: int, samples: int, heads: int, width: int) -> Caches:
        blank = [[torch.zeros(0, heads, width)] * samples for _ in range(layers)]
        return cls([list(row) for row in blank], [list(row) for row in blank])


def generate(
    vae: Weights,
    vae_config: TextVAEConfig,
    prior: Weights,
    config: PriorConfig,
    prefixes: Tensor,
    noise: Tensor,
    steps: int,
    guidance: float,
    fused: bool = False,
) -> Iterator[Tensor]:
    """Token ids (B, b) of each block after prefix latents (B, m, d), m whole blocks.

    noise: (B, blocks, b, d).
    """
    B, blocks = noise.shape[:2]
    m = prefixes.shape[1]
    cache = Caches.empty(config.layers, B, config.heads, config.head_dim)
    decoder_cache = Caches.empty(
        vae_config.decoder_layers, B, vae_config.heads, vae_config.head_dim
    )
    prior_pass(prior, config, prefixes, 0.0, cache, True, fused)
    decode(vae, vae_config, prefixes, decoder_cache, fused)
    for block in range(blocks):
        z = noise[:, block]
        for step in range(steps):
            t, end = 1 - step / steps, 1 - (step + 1) / steps
            conditional = prior_pass(prior, config, z, t, cache, False, fused)
            if guidance != 1 and (m or block):
                alone = prior_pass(prior, config, z, t, None, False, fused)
                conditional = alone + guidance * (conditional - alone)
            z = z - conditional * (t - end)
        ids = decode(vae, vae_config, z, decoder_cache, fused).argmax(-1)
        prior_pass(prior, config, z, 0.0, cache, True, fused)
        yield ids


def prior_pass(
    w: Weights,
    config: PriorConfig,
    z: Tensor,
    t: float,
    cache: Caches | None,
    update: bool,
    fused: bool,
) -> Tensor:
    """Velocity (B, n, d) of z (B, n, d) at t, after what is cached (None: nothing)."""
    B, n, d = z.shape
    eps = config.norm_eps
    times = torch.full((B * n,), t)
    frequencies = torch.exp(torch.arange(128) * (-math.log(10_000.0) / 128))
    angles = times[:, None] * 1000.0 * frequencies
    e = torch.cat((angles.sin(), angles.cos()), -1)
    e = F.silu(linear(w, "timestep_in", e))
    e = F.silu(linear(w, "timestep_hidden", e))
    condition = F.silu(linear(w, "timestep_out", e))  # (B n, D), per token
    x = linear(w, "latent_in", z.reshape(B * n, d))
    past = [0] * B if cache is None else [len(keys) for keys in cache.keys[0]]
    mask = flattened_mask(past, n, config.block_size)
    q_positions = torch.cat([torch.arange(p, p + n) for p in past])
    k_positions = torch.cat([torch.arange(p + n) for p in past])
    for i in range(config.layers):
        name = f"blocks.{i}"
        modulation = linear(w, f"{name}.modulation", condition).chunk(6, -1)
        h = F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + modulation[1]) + modulation[0]
        q, k, v = linear(w, f"{name}.qkv", h).unflatten(-1, (3, config.heads, -1)).unbind(1)
        q = F.layer_norm(q, q.shape[-1:], w[f"{name}.q_norm.weight"], w[f"{name}.q_norm.bias"], eps)
        k = F.layer_norm(k, k.shape[-1:], w[f"{name}.k_norm.weight"], w[f"{name}.k_norm.bias"], eps)
        keys, values = joined(cache, i, k, v, B, update)
        q = rotate(q, q_positions, config.rope_dim)
        keys = rotate(keys, k_positions, config.rope_dim)
        a = attention(q, keys, values, mask, not fused).flatten(1)
        x = linear(w, f"{name}.attention_out", a) * modulation[2] + x
        h = F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + modulation[4]) + modulation[3]
        h = F.gelu(linear(w, f"{name}.mlp_in", h), approximate="tanh")
        x = linear(w, f"{name}.mlp_out", h) * modulation[5] + x
    shift, scale = linear(w, "out_modulation", condition).chunk(2, -1)
    x = F.layer_norm(x, x.shape[-1:], w["out_norm.weight"], w["out_norm.bias"], eps)
    return linear(w, "latent_out", x * (1 + scale) + shift).view(B, n, d)


def decode(w: Weights, config: TextVAEConfig, z: Tensor, cache: Caches, fused: bool) -> Tensor:
    """Logits (B, n, vocab) of latents (B, n, d) after what is cached; patch size 1."""
    B, n, d = z.shape
    eps, dim = config.norm_eps, config.dim
    x = linear(w, "latent_in", z.reshape(B * n, d))
    past = [len(keys) for keys in cache.keys[0]]
    mask = flattened_mask(past, n, config.block_size)
    q_positions = torch.cat([torch.arange(p, p + n) for p in past])
    k_positions = torch.cat([torch.arange(p + n) for p in past])
    heads = (config.heads, config.head_dim)
    for i in range(config.decoder_layers):
        name = f"decoder.{i}"
        q, k, v = linear(w, f"{name}.qkv", x).chunk(3, -1)
        keys, values = joined(cache, i, k.unflatten(-1, heads), v.unflatten(-1, heads), B, True)
        q = F.layer_norm(q, (dim,), w[f"{name}.q_norm.weight"], w[f"{name}.q_norm.bias"], eps)
        # the cache holds keys as they were before the norm
        k = F.layer_norm(
            keys.flatten(1), (dim,), w[f"{name}.k_norm.weight"], w[f"{name}.k_norm.bias"], eps
        )
        q = rotate_halves(q.unflatten(-1, heads), q_positions, config.rope_theta)
        k = rotate_halves(k.unflatten(-1, heads), k_positions, config.rope_theta)
        a = linear(w, f"{name}.attention_out", attention(q, k, values, mask, not fused).flatten(1))
        scale, bias = w[f"{name}.attention_norm.weight"], w[f"{name}.attention_norm.bias"]
        x = F.layer_norm(x, (dim,), scale, bias, eps) + a
        value, gate = linear(w, f"{name}.ffn_in", x).chunk(2, -1)
        f = linear(w, f"{name}.ffn_out", F.silu(gate) * value)
        x = x + F.layer_norm(
            f, (dim,), w[f"{name}.ffn_norm.weight"], w[f"{name}.ffn_norm.bias"], eps
        )
    x = linear(w, "patch_out", x)
    x = F.layer_norm(x, (dim,), w["out_norm.weight"], w["out_norm.bias"], eps)
    return linear(w, "token_out", x).view(B, n, -1)


def joined(
    cache: Caches | None, layer: int, k: Tensor, v: Tensor, B: int, update: bool
) -> tuple[Tensor, Tensor]:
    """Cached and new keys and values of all samples, one after another."""
    if cache is None:
        return k, v
    pairs = zip(k.chunk(B), v.chunk(B), strict=True)
    keys, values = [], []
    for sample, (new_k, new_v) in enumerate(pairs):
        keys.append(torch.cat((cache.keys[layer][sample], new_k)))
        values.append(torch.cat((cache.values[layer][sample], new_v)))
    if update:
        cache.keys[layer], cache.values[layer] = keys, values
    return torch.cat(keys), torch.cat(values)


def flattened_mask(past: list[int], n: int, block: int) -> Tensor:
    """(B n, total keys) bool: block-causal within a sample, nothing across samples."""
    B = len(past)
    q_sample = torch.arange(B).repeat_interleave(n)
    k_sample = torch.cat([torch.full((p + n,), i) for i, p in enumerate(past)])
    q_block = torch.cat([torch.arange(p, p + n) for p in past]) // block
    k_block = torch.cat([torch.arange(p + n) for p in past]) // block
    return (q_sample[:, None] == k_sample) & (q_block[:, None] >= k_block)


def rotate_halves(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """NeoX rotary embedding of x (n, H, width)."""
    width = x.shape[-1]
    frequencies = 1 / theta ** (torch.arange(0, width, 2) / width)
    angles = (positions[:, None] * frequencies)[:, None, :]
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
