"""A baseline's forward pass as generation needs it: the same mathematics in as few operations as possible.

For float32 on a CPU, see `can_pack`. The scales of the RMS norms are part of the products behind them,
weights are packed once for oneDNN, and channels of queries and keys are in such an order that the rotation is
one complex product.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.models.attention import Attend
from cola_cli.models.transformer import Block, Transformer
from cola_cli.sampling.fast.fused_prior import Dense, dense


class _Layer(NamedTuple):
    qkv: Dense
    attention_out: Dense
    ffn_in: Dense
    ffn_out: Dense


class FusedTransformer:
    """Hidden states and logits of new tokens behind cached ones; the cache is its own, see `qkv_weight`."""

    @torch.inference_mode()
    def __init__(self, network: Transformer) -> None:
        self.config = config = network.config
        self._embedding = network.embedding.weight.detach()
        self._frequencies = network.frequencies
        self._token_out = dense(network.token_out.weight * network.out_norm.weight, None, pack=True)
        self._layers = [
            _Layer(
                dense(qkv_weight(block, config.head_dim), None, pack=True),
                dense(block.attention_out.weight, None, pack=True),
                dense(block.ffn_in.weight * block.ffn_norm.weight, None, pack=True),
                dense(block.ffn_out.weight, None, pack=True),
            )
            for block in cast("list[Block]", list(network.blocks))
        ]

    def __call__(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """ids (B, n) -> logits (B, n, vocab) of the token after each."""
        return self._token_out(self.hidden(ids, positions, attend))

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """ids (B, n) at positions (B, n) -> normed hidden states (B, n, D); `attend` sees the old."""
        heads, eps = self.config.heads, self.config.norm_eps
        angles = positions[..., None, None, None] * self._frequencies  # (B, n, 1, 1, pairs)
        turns = torch.polar(torch.ones_like(angles), angles)
        x = F.embedding(ids, self._embedding)
        for number, layer in enumerate(self._layers):
            qkv = layer.qkv(normed(x, eps)).view(*ids.shape, 3, heads, -1)
            pairs = torch.view_as_complex(qkv[:, :, :2].unflatten(-1, (-1, 2)))
            q, k = torch.view_as_real(pairs * turns).flatten(-2).transpose(1, 3).unbind(2)
            out = attend(number, q, k, qkv[:, :, 2].transpose(1, 2))  # (B, H, n, head_dim)
            x = x + layer.attention_out(out.transpose(1, 2).flatten(2))
            gate, value = layer.ffn_in(normed(x, eps)).chunk(2, dim=-1)
            x = x + layer.ffn_out(F.silu(gate) * value)
        return normed(x, eps)


def normed(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without scale."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def qkv_weight(block: Block, head_dim: int) -> Tensor:
    """The weight of queries, keys and values behind a norm without scale.

    Channels i and i + head_dim / 2 of a query or key, which turn together, are neighbours in it: products of
    queries and keys stay the same, but cached keys are in another order than the network's own.
    """
    weight = (block.qkv.weight * block.attention_norm.weight).unflatten(
        0, (3, -1, 2, head_dim // 2)
    )
    turned = weight[:2].transpose(2, 3).flatten(0, 3)
    return torch.cat((turned, weight[2].flatten(0, 2)))
