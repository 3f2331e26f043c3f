"""The losses of the Cola DLM paper, one sequence at a time with dense masks and explicit sums.

Written from the paper and the released code's description, for comparison; slow and without tricks. Weights
are a dictionary under cola's parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.models.config import TextVAEConfig

Weights = Mapping[str, Tensor]


def norm(x: Tensor, eps: float, w: Weights | None = None, name: str = "") -> Tensor:
    """LayerNorm over the last axis, written out."""
    centred = x - x.mean(-1, keepdim=True)
    out = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return out if w is None else out * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    """x W^T + b."""
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def block(x: Tensor, w: Weights, name: str, config: TextVAEConfig) -> Tensor:
    """One block of the Text VAE on one sequence (N, D)."""
    n, dim = x.shape
    heads, width = config.heads, dim // config.heads
    q, k, v = linear(x, w, f"{name}.qkv").split(dim, -1)
    q = norm(q, config.norm_eps, w, f"{name}.q_norm")
    k = norm(k, config.norm_eps, w, f"{name}.k_norm")
    q, k, v = (part.reshape(n, heads, width) for part in (q, k, v))
    angles = torch.arange(n)[:, None] * w["frequencies"]  # (n, width / 2)
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
    out = torch.zeros(n, heads, width, dtype=x.dtype)
    for head in range(heads):
        turned = []
        for part in (q[:, head], k[:, head]):
            first, second = part[:, : width // 2], part[:, width // 2 :]
            turned.append(part * cos + torch.cat((-second, first), -1) * sin)
        for i in range(n):
            seen = [j for j in range(n) if j // config.block_size <= i // config.block_size]
            scores = torch.stack([turned[0][i] @ turned[1][j] / math.sqrt(width) for j in seen])
            shares = scores.exp() / scores.exp().sum()
            out[i, head] = (shares[:, None] * v[seen, head]).sum(0)
    x = norm(x, config.norm_eps, w, f"{name}.attention_norm")
    x = x + linear(out.reshape(n, dim), w, f"{name}.attention_out")
    value, gate = linear(x, w, f"{name}.ffn_in").split(config.ffn_dim // 2, -1)
    hidden = linear(value * gate * torch.sigmoid(gate), w, f"{name}.ffn_out")
    return x + norm(hidden, config.norm_eps, w, f"{name}.ffn_norm")


def encode(tokens: Tensor, w: Weights, config: TextVAEConfig) -> tuple[Tensor, Tensor]:
    """tokens (L,) -> mean, logvar (L, d), patch size 1."""
    x = w["embedding.weight"][tokens] @ w["patch_in.weight"][:, :, 0].T + w["patch_in.bias"]
    for i in range(config.encoder_layers):
        x = block(x, w, f"encoder.{i}", config)
    mean, logvar = linear(x, w, "posterior_out").split(config.latent_dim, -1)
    return norm(mean, 1e-6), logvar.clamp(-30, 20)


def decode(z: Tensor, w: Weights, config: TextVAEConfig) -> Tensor:
    """z (L, d) -> log-probabilities (L, V), patch size 1."""
    x = linear(z, w, "latent_in")
    for i in range(config.decoder_layers):
        x = block(x, w, f"decoder.{i}", config)
    x = norm(linear(x, w, "patch_out"), config.norm_eps, w, "out_norm")
    return F.log_softmax(linear(x, w, "token_out"), -1)


def cross_entropy(log_probabilities: Tensor, tokens: Tensor, places: list[int]) -> Tensor:
    """The sum of -log p at some places."""
    return -torch.stack([log_probabilities[i, tokens[i]] for i in places]).sum()


def kl(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    """KL of diagonal normals by the definition of torch.distributions, summed over everything."""
    first = torch.distributions.Normal(mean, (logvar / 2).exp())
    second = torch.distributions.Normal(other_mean, (other_logvar / 2).exp())
    return torch.distributions.kl_divergence(first, second).sum()


def negative_entropy(logvar: Tensor) -> Tensor:
    """E_q log q, summed over everything."""
    return -torch.distributions.Normal(torch.zeros_like(logvar), (logvar / 2).exp()).entropy().sum()
