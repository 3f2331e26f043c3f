"""Generation as the paper and the released code describe it: unbatched, uncached, every pass in full.

Weights are dictionaries under cola's parameter names. Nothing here calls cola's networks or engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.models.config import PriorConfig, TextVAEConfig
from tests.oracles.plain_train import forward as prior_forward
from tests.training.brute_force import linear, norm

Weights = Mapping[str, Tensor]


def vae_block(x: Tensor, w: Weights, name: str, config: TextVAEConfig) -> Tensor:
    """One block of the VAE on one sequence (n, D), a query at a time."""
    n, heads, width = len(x), config.heads, config.dim // config.heads
    q, k, v = linear(x, w, f"{name}.qkv").split(config.dim, -1)
    q = norm(q, config.norm_eps, w, f"{name}.q_norm").view(n, heads, width)
    k = norm(k, config.norm_eps, w, f"{name}.k_norm").view(n, heads, width)
    v = v.view(n, heads, width)
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    angles = torch.arange(n)[:, None] / config.rope_theta**exponents
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

    def turned(part: Tensor) -> Tensor:
        first, second = part.split(width // 2, -1)
        return part * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]

    q, k = turned(q), turned(k)
    rows = []
    for i in range(n):
        last = (i // config.block_size + 1) * config.block_size  # sees its own block whole
        scores = (q[i][:, None] * k[:last].transpose(0, 1)).sum(-1) / width**0.5  # (H, seen)
        rows.append((scores.softmax(-1)[..., None] * v[:last].transpose(0, 1)).sum(1).flatten())
    attention = linear(torch.stack(rows), w, f"{name}.attention_out")
    x = norm(x, config.norm_eps, w, f"{name}.attention_norm") + attention
    value, gate = linear(x, w, f"{name}.ffn_in").chunk(2, -1)
    hidden = linear(F.silu(gate) * value, w, f"{name}.ffn_out")
    return x + norm(hidden, config.norm_eps, w, f"{name}.ffn_norm")


def encode(ids: Sequence[int], w: Weights, config: TextVAEConfig) -> Tensor:
    """Posterior means (L / patch, d) of ids (L,)."""
    embedded = w["embedding.weight"][list(ids)]
    patches = embedded.view(-1, config.patch_size, config.dim)  # (N, patch, D)
    x = torch.einsum("npi,oip->no", patches, w["patch_in.weight"]) + w["patch_in.bias"]
    for layer in range(config.encoder_layers):
        x = vae_block(x, w, f"encoder.{layer}", config)
    return norm(linear(x, w, "posterior_out")[:, : config.latent_dim], 1e-6)


def decode(z: Tensor, w: Weights, config: TextVAEConfig) -> Tensor:
    """Logits (N * patch, V) of latents (N, d)."""
    x = linear(z, w, "latent_in")
    for layer in range(config.decoder_layers):
        x = vae_block(x, w, f"decoder.{layer}", config)
    x = linear(x, w, "patch_out")
    # channel-major: channel c of token p in a patch is column c * patch + p
    x = x.view(-1, config.dim, config.patch_size).transpose(1, 2).reshape(-1, config.dim)
    return linear(norm(x, config.norm_eps, w, "out_norm"), w, "token_out")


def velocity(history: Tensor, z: Tensor, t: Tensor, w: Weights, config: PriorConfig) -> Tensor:
    """Velocity (b, d) of a block z at t (b,), after clean latents (m, d)."""
    times = torch.cat((torch.zeros(len(history)), t))
    positions = torch.arange(len(times))
    blocks = positions // config.block_size
    mask = blocks[:, None] >= blocks[None]
    latents = torch.cat((history, z))
    return prior_forward(w, config, latents, times, positions, mask, True)[len(history) :]


def generate(
    prompt: Sequence[int],
    noise: Tensor,
    vae: Weights,
    vae_config: TextVAEConfig,
    prior: Weights,
    prior_config: PriorConfig,
    pad_id: int,
    steps: int,
    guidance: float,
) -> tuple[list[int], Tensor]:
    """New token ids and latents (blocks, b, d) of one prompt: greedy, clean-condition repaint, Euler."""
    b, patch = prior_config.block_size, vae_config.patch_size
    padded = [*prompt, *[pad_id] * (-len(prompt) % (b * patch))]
    known = torch.zeros(0, vae_config.latent_dim)
    if padded:
        mean = encode(padded, vae, vae_config)
        mean = (mean - vae_config.shifting_factor) * vae_config.scaling_factor
        known = mean[: -(-len(prompt) // patch)]
    history = known[: len(known) // b * b]
    pinned = known[len(history) :]
    trim = max(0, len(prompt) - len(history) * patch)
    prefix = len(history)
    blocks = []
    for number, z in enumerate(noise):
        held = len(pinned) if number == 0 else 0
        z = torch.cat((pinned[:held], z[held:]))
        for step in range(steps):
            t = torch.full((b,), 1 - step / steps)
            t[:held] = 0
            v = velocity(history, z, t, prior, prior_config)
            if len(history):
                alone = velocity(history[:0], z, t, prior, prior_config)
                v = alone + guidance * (v - alone)
            z = torch.cat((pinned[:held], (z - v / steps)[held:]))
        blocks.append(z)
        history = torch.cat((history, z))
    tokens = decode(history, vae, vae_config)[prefix * patch :].argmax(-1)
    return tokens.tolist()[trim:], torch.stack(blocks)
