"""The Text VAE: tokens to one latent each and back, layer for layer the released `ColaTextVAEModel`.

Its post-norm is unusual and kept for the weights' sake: attention reads the un-normed residual, the residual
is normed before the attention output is added, and the feed-forward is normed on its output.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_cli.models.attention import Attend, BlockCausal
from cola_cli.models.config import TextVAEConfig
from cola_cli.models.rotary import Rotation, rotary_frequencies, rotate_halves, rotation, wide

LOG_VARIANCE_RANGE = (-30.0, 20.0)
INIT_STD = 0.02
INIT_CUTOFF = 3 * INIT_STD


class Posterior(NamedTuple):
    """q(z_0 | x): mean and log-variance, each (B, N, d)."""

    mean: Tensor
    logvar: Tensor


class Block(nn.Module):
    """One block of the encoder or decoder."""

    def __init__(self, config: TextVAEConfig, layer: int) -> None:
        super().__init__()
        dim = config.dim
        self.layer = layer
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qk_bias)
        self.q_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.k_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attention_out = nn.Linear(dim, dim, bias=config.bias)
        self.ffn_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.ffn_in = nn.Linear(dim, config.ffn_dim, bias=config.bias)
        self.ffn_out = nn.Linear(config.ffn_dim // 2, dim, bias=config.bias)

    def forward(self, x: Tensor, table: Rotation, attend: Attend) -> Tensor:
        """(B, n, D) -> (B, n, D)."""
        x = self.attention_norm(x) + self._attention(x, table, attend)
        value, gate = self.ffn_in(x).chunk(2, dim=-1)
        return x + self.ffn_norm(self.ffn_out(F.silu(gate) * value))

    def _attention(self, x: Tensor, table: Rotation, attend: Attend) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        # one norm over the full width, before the heads are split
        q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        q, k = rotate_halves(q, table), rotate_halves(k, table)  # (B, H, n, head_dim)
        out = attend(self.layer, q, k.to(v.dtype), v)
        return self.attention_out(out.transpose(1, 2).flatten(2))


class TextVAE(nn.Module):
    """Encoder q(z_0 | x) and decoder p(x | z_0); latents one per `patch_size` tokens."""

    frequencies: Tensor

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        self.embedding = nn.Embedding(config.vocab_size + 1, dim)  # the last row is the mask token
        self.patch_in = nn.Conv1d(dim, dim, kernel_size=patch, stride=patch)
        self.encoder = nn.ModuleList(Block(config, i) for i in range(config.encoder_layers))
        self.posterior_out = nn.Linear(dim, 2 * config.latent_dim, bias=config.bias)
        self.latent_in = nn.Linear(config.latent_dim, dim, bias=config.bias)
        self.decoder = nn.ModuleList(Block(config, i) for i in range(config.decoder_layers))
        self.patch_out = nn.Linear(dim, patch * dim, bias=config.bias)
        self.out_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.token_out = nn.Linear(dim, config.vocab_size, bias=config.bias)
        frequencies = rotary_frequencies(config.head_dim, config.rope_theta)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Normal with deviation 0.02, cut at three deviations; biases zero."""
        if self.embedding.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-INIT_CUTOFF, b=INIT_CUTOFF)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def encode(
        self, ids: Tensor, positions: Tensor | None = None, attend: Attend | None = None
    ) -> Posterior:
        """ids (B, L) int64 -> posterior (B, N, d), N = L / patch_size, before scaling.

        The mean has zero mean and unit variance over the channels. L must be a multiple of patch_size;
        the mask token is `config.mask_token_id`. Raises ValueError otherwise. With a cache, `positions` and
        `attend` are as in `decode`.
        """
        if ids.shape[1] % self.config.patch_size:
            raise ValueError(f"length {ids.shape[1]} is not a multiple of {self.config.patch_size}")
        x = self.patch_in(self.embedding(ids).transpose(1, 2)).transpose(1, 2)  # (B, N, D)
        x = self._run(self.encoder, x, positions, attend)
        mean, logvar = self.posterior_out(x).chunk(2, dim=-1)
        # in float32, as everything that touches latents
        mean = F.layer_norm(wide(mean), mean.shape[-1:], eps=1e-6)
        return Posterior(mean, wide(logvar).clamp(*LOG_VARIANCE_RANGE))

    def decode(
        self, z: Tensor, positions: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        """z (B, N, d) -> logits (B, N * patch_size, vocab).

        With a cache, `positions` (N,) or (B, N) are those of the new latents and `attend` sees the old.
        """
        return self.token_out(self.decode_hidden(z, positions, attend))

    def decode_hidden(
        self, z: Tensor, positions: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        """z (B, N, d) -> normed hidden states (B, N * patch_size, D), the input of the token head."""
        x = self.latent_in(z.to(self.latent_in.weight.dtype))
        x = self._run(self.decoder, x, positions, attend)
        # channel-major: (B, N, D * patch) -> (B, N * patch, D)
        x = (
            self.patch_out(x)
            .unflatten(-1, (-1, self.config.patch_size))
            .transpose(2, 3)
            .flatten(1, 2)
        )
        return self.out_norm(x)

    def _run(
        self, blocks: nn.ModuleList, x: Tensor, positions: Tensor | None, attend: Attend | None
    ) -> Tensor:
        length = x.shape[1]
        if positions is None:
            positions = torch.arange(length, device=x.device)
        if attend is None:
            attend = BlockCausal(length, self.config.block_size, x.device)
        table = rotation(positions, self.frequencies)
        for block in blocks:
            x = block(x, table, attend)
        return x

    def to_prior(self, mean: Tensor) -> Tensor:
        """Latents on the prior's scale: (mean - shifting_factor) * scaling_factor."""
        return self.config.to_prior(mean)
