"""The baselines' network: a LLaMA-style transformer over tokens, causal (AR) or bidirectional (LLaDA).

Pre-norm blocks with RMSNorm, SwiGLU and rotary positions, no biases, embedding and head not tied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_cli.models.attention import Attend, BlockCausal
from cola_cli.models.config import TransformerConfig
from cola_cli.models.rotary import Rotation, rotary_frequencies, rotate_halves, rotation

INIT_STD = 0.02


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        dim, inner = config.dim, config.heads * config.head_dim
        self.layer = layer
        self.heads = config.heads
        self.attention_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.attention_out = nn.Linear(inner, dim, bias=False)
        self.ffn_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.ffn_in = nn.Linear(dim, 2 * config.ffn_dim, bias=False)
        self.ffn_out = nn.Linear(config.ffn_dim, dim, bias=False)

    def forward(self, x: Tensor, table: Rotation, attend: Attend) -> Tensor:
        """(B, n, D) -> (B, n, D)."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, n, head_dim)
        out = attend(self.layer, rotate_halves(q, table), rotate_halves(k, table), v)
        x = x + self.attention_out(out.transpose(1, 2).flatten(2))
        gate, value = self.ffn_in(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.ffn_out(F.silu(gate) * value)


class Transformer(nn.Module):
    """p(next token | tokens before) if causal, else p(token | all other tokens)."""

    frequencies: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        rows = config.vocab_size + (0 if config.causal else 1)
        self.embedding = nn.Embedding(rows, config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.out_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.token_out = nn.Linear(config.dim, config.vocab_size, bias=False)
        frequencies = rotary_frequencies(config.head_dim, config.rope_theta)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Normal with deviation 0.02."""
        if self.embedding.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)

    def forward(
        self, ids: Tensor, positions: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        """ids (B, L) int64 -> logits (B, L, vocab). Causal: of the token after each."""
        return self.token_out(self.hidden(ids, positions, attend))

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        """ids (B, L) -> normed hidden states (B, L, D), the input of the token head.

        With a cache, `positions` (L,) or (B, L) are those of the new tokens and `attend` sees the old.
        """
        length = ids.shape[1]
        if positions is None:
            positions = torch.arange(length, device=ids.device)
        if attend is None:
            attend = BlockCausal(length, 1 if self.config.causal else length, ids.device)
        table = rotation(positions, self.frequencies)
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, table, attend)
        return self.out_norm(x)
