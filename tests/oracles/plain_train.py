"""One training step of the prior, written plainly from the paper: what `cola_cli` is measured against.

The batch is flattened to one axis, [clean without its last block | noisy] of every sequence in turn; one
dense mask says who sees whom; the timestep embedding and all AdaLN modulations are computed per token.
Same mathematics and same weights as `cola_cli.models.prior`, nothing clever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.models.config import PriorConfig

Weights = Mapping[str, Tensor]


def loss(
    weights: Weights,
    config: PriorConfig,
    z0: Tensor,
    z1: Tensor,
    t: Tensor,
    clean: Tensor,
    weight: Tensor,
    explicit_softmax: bool = False,
    shift: Tensor | float = 0.0,
) -> Tensor:
    """The flow-matching loss. z0, z1 (B, L, d); t (B, blocks); clean, weight (B, L).

    `shift` is added to z_t.
    """
    B, L, d = z0.shape
    b = config.block_size
    token_t = t.repeat_interleave(b, 1).masked_fill(clean, 0.0)
    z_t = (1 - token_t[..., None]) * z0 + token_t[..., None] * z1 + shift
    latents = torch.cat((z0[:, : L - b], z_t), 1).reshape(-1, d)  # (B (2L - b), d)
    times = torch.cat((torch.zeros(B, L - b), token_t), 1).reshape(-1)
    positions = torch.cat((torch.arange(L - b), torch.arange(L))).repeat(B)
    mask = flattened_mask(B, L, b)
    velocity = forward(weights, config, latents, times, positions, mask, explicit_softmax)
    velocity = velocity.view(B, 2 * L - b, d)[:, L - b :]
    return ((velocity - (z1 - z0)).square().mean(-1) * weight).sum()


def flattened_mask(B: int, L: int, b: int) -> Tensor:
    """(B (2L - b), B (2L - b)) bool: the whole batch in one mask."""
    sequence = torch.arange(B).repeat_interleave(2 * L - b)
    block = torch.cat((torch.arange(L - b), torch.arange(L))).repeat(B) // b
    noisy = (torch.arange(2 * L - b) >= L - b).repeat(B)
    same = sequence[:, None] == sequence[None]
    earlier = block[None] < block[:, None]
    own = block[None] == block[:, None]
    of_noisy = (~noisy[None] & earlier) | (noisy[None] & own)
    of_clean = ~noisy[None] & (earlier | own)
    return same & torch.where(noisy[:, None], of_noisy, of_clean)


def forward(
    w: Weights,
    config: PriorConfig,
    latents: Tensor,
    times: Tensor,
    positions: Tensor,
    mask: Tensor,
    explicit_softmax: bool,
    read_as: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """latents (n, d), times and positions (n,), mask (n, n) -> velocity (n, d).

    read_as (n,): tokens whose embeddings are added to the input, -1 for none. before (n,): the place of the
    position that says something of this one; -1: none; -2: this one says it.
    """
    H, eps = config.heads, config.norm_eps
    frequencies = torch.exp(torch.arange(128) * (-math.log(10_000.0) / 128))
    angles = times[:, None] * 1000.0 * frequencies
    e = torch.cat((angles.sin(), angles.cos()), -1)
    e = F.silu(_linear(w, "timestep_in", e))
    e = F.silu(_linear(w, "timestep_hidden", e))
    condition = F.silu(_linear(w, "timestep_out", e))  # (n, D), per token
    x = _linear(w, "latent_in", latents)
    if read_as is not None:
        embedded = w["token_embed.weight"][read_as.clamp(min=0)]
        x = x + embedded * (read_as >= 0)[:, None]
    for i in range(config.layers):
        name = f"blocks.{i}"
        modulation = _linear(w, f"{name}.modulation", condition).chunk(6, -1)
        h = F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + modulation[1]) + modulation[0]
        q, k, v = _linear(w, f"{name}.qkv", h).unflatten(-1, (3, H, -1)).unbind(1)  # (n, H, hd)
        q = F.layer_norm(q, q.shape[-1:], w[f"{name}.q_norm.weight"], w[f"{name}.q_norm.bias"], eps)
        k = F.layer_norm(k, k.shape[-1:], w[f"{name}.k_norm.weight"], w[f"{name}.k_norm.bias"], eps)
        q, k = (rotate(part, positions, config.rope_dim) for part in (q, k))
        a = attention(q, k, v, mask, explicit_softmax).flatten(1)
        x = _linear(w, f"{name}.attention_out", a) * modulation[2] + x
        h = F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + modulation[4]) + modulation[3]
        h = F.gelu(_linear(w, f"{name}.mlp_in", h), approximate="tanh")
        x = _linear(w, f"{name}.mlp_out", h) * modulation[5] + x
    shift, scale = _linear(w, "out_modulation", condition).chunk(2, -1)
    x = F.layer_norm(x, x.shape[-1:], w["out_norm.weight"], w["out_norm.bias"], eps)
    x = x * (1 + scale) + shift
    if before is not None:
        said = x[before.clamp(min=0)] * (before >= 0)[:, None]
        x = torch.where((before == -2)[:, None], x, said + x @ w["own_out.weight"].T)
    return _linear(w, "latent_out", x)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, explicit_softmax: bool) -> Tensor:
    """(n, H, hd) each, mask (n, n) -> (n, H, hd)."""
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    if explicit_softmax:
        scores = (q @ k.mT) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        out = scores.softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
    return out.transpose(0, 1)


def rotate(x: Tensor, positions: Tensor, channels: int) -> Tensor:
    """Interleaved rotary embedding of the first `channels` of x (n, H, hd)."""
    # float32 as they are stored in checkpoints, in any precision of the rest
    pairs = torch.arange(0, channels, 2, dtype=torch.float32)
    frequencies = (1 / 10_000.0 ** (pairs / channels)).to(x.dtype)
    angles = (positions[:, None] * frequencies)[:, None, :]  # (n, 1, channels / 2)
    even, odd = x[..., :channels:2], x[..., 1:channels:2]
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    return torch.cat((turned, x[..., channels:]), -1)


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
