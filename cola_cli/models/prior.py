"""The prior: a block-causal diffusion transformer that predicts the velocity of noisy latents.

Layer for layer the released code's `ColaDiTModel`: pre-norm blocks with AdaLN (shift and scale before,
gate after), per-head LayerNorm of queries and keys, interleaved rotary positions, GELU-tanh MLP. What
depends on the timestep alone is computed once per distinct timestep, not per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_cli.models.config import TIMESTEP_CHANNELS, PriorConfig
from cola_cli.models.rotary import Rotation, rotary_frequencies, rotate_interleaved, rotation, wide

TIMESTEP_SCALE = 1000.0  # t in [0, 1] is embedded as 1000 t

# attend(layer, q, k, v) -> out, all (B, H, n, head_dim); q and k are normalised and rotated.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class LayerModulation(NamedTuple):
    """The modulation of one norm or block: its rows are shifts, scales and gates.

    values (rows, B or 1, groups or 1, 1, D); at `places` (indices into the B n positions) the rows are
    those of `clean` (rows, D) instead.
    """

    values: Tensor
    clean: Tensor | None = None
    places: Tensor | None = None

    def norm(self, x: Tensor, row: int) -> Tensor:
        """x * (1 + scale) + shift with shift and scale in rows `row` and `row + 1`; x (B, n, D)."""
        shift, scale = self.values[row], 1 + self.values[row + 1]
        out = torch.addcmul(shift, x.unflatten(1, (shift.shape[1], -1)), scale).flatten(1, 2)
        if self.clean is None or self.places is None:
            return out
        few = x.flatten(0, 1)[self.places] * (1 + self.clean[row + 1]) + self.clean[row]
        return _put(out, self.places, few)

    def gate(self, x: Tensor, row: int) -> Tensor:
        """x * gate with the gate in row `row`; x (B, n, D)."""
        gate = self.values[row]
        out = (x.unflatten(1, (gate.shape[1], -1)) * gate).flatten(1, 2)
        if self.clean is None or self.places is None:
            return out
        return _put(out, self.places, x.flatten(0, 1)[self.places] * self.clean[row])


class Modulation(NamedTuple):
    """Shifts, scales and gates for groups of positions that share a timestep.

    blocks: (layers, 6, B or 1, groups or 1, 1, D) in the order shift, scale, gate of attention, then of
    the MLP. output: (2, B or 1, groups or 1, 1, D), shift and scale of the last norm. A group is
    n / groups consecutive positions. At `places`, indices into the B n positions, the modulation of t = 0
    holds instead: clean_blocks (layers, 6, D) and clean_output (2, D).
    """

    blocks: Tensor
    output: Tensor
    places: Tensor | None = None
    clean_blocks: Tensor | None = None
    clean_output: Tensor | None = None

    def with_clean(self, places: Tensor, zero: Modulation) -> Modulation:
        """The same with the positions at `places` at t = 0; `zero` is the modulation of that alone."""
        return Modulation(
            self.blocks, self.output, places, zero.blocks[:, :, 0, 0, 0], zero.output[:, 0, 0, 0]
        )

    def layer(self, layer: int) -> LayerModulation:
        """The modulation of one block: shift, scale, gate of attention, then of the MLP."""
        clean = None if self.clean_blocks is None else self.clean_blocks[layer]
        return LayerModulation(self.blocks[layer], clean, self.places)

    def last(self) -> LayerModulation:
        """The modulation of the last norm: shift, scale."""
        return LayerModulation(self.output, self.clean_output, self.places)

    def step(self, index: int) -> Modulation:
        """Entry `index` of a table made from timesteps (steps,), for all rows and positions."""
        return Modulation(
            self.blocks[:, :, :, index : index + 1], self.output[:, :, index : index + 1]
        )


class WideLinear(nn.Linear):
    """A linear layer that computes in float32 at least, whatever the precision of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        weight = wide(self.weight)
        return F.linear(x.to(weight.dtype), weight, wide(self.bias))


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, config: PriorConfig, layer: int) -> None:
        super().__init__()
        dim, inner = config.dim, config.heads * config.head_dim
        self.layer = layer
        self.heads = config.heads
        self.eps = config.norm_eps
        self.qkv = nn.Linear(dim, 3 * inner, bias=config.qk_bias)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
        self.k_norm = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
        self.attention_out = nn.Linear(inner, dim, bias=config.qk_bias)
        self.mlp_in = nn.Linear(dim, config.expand_ratio * dim)
        self.mlp_out = nn.Linear(config.expand_ratio * dim, dim)
        self.modulation = WideLinear(dim, 6 * dim)

    def forward(
        self,
        x: Tensor,
        modulation: LayerModulation,
        table: Rotation,
        attend: Attend,
        keys_only: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, n, D) -> (B, n, D), and the keys and values (B, H, n, head_dim).

        With `keys_only` the block stops once `attend` has seen keys and values; x comes back as it was.
        """
        h = modulation.norm(self._normed(x), 0)
        if keys_only:
            k, v = self._keys_values(h, table)
            attend(self.layer, k[:, :, :0], k, v)
            return x, k, v
        q, k, v = self._queries_keys_values(h, table)
        out = attend(self.layer, q, k, v)  # (B, H, n, head_dim)
        x = x + modulation.gate(self.attention_out(out.transpose(1, 2).flatten(2)), 2)
        h = modulation.norm(self._normed(x), 3)
        h = self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh"))
        return x + modulation.gate(h, 5), k, v

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def _keys_values(self, h: Tensor, table: Rotation) -> tuple[Tensor, Tensor]:
        inner = self.qkv.out_features // 3
        bias = None if self.qkv.bias is None else self.qkv.bias[inner:]
        kv = F.linear(h, self.qkv.weight[inner:], bias).unflatten(-1, (2, self.heads, -1))
        k, v = (part.transpose(1, 2) for part in kv.unbind(2))  # (B, H, n, head_dim)
        return rotate_interleaved(self.k_norm(k), table).to(v.dtype), v

    def _queries_keys_values(self, h: Tensor, table: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1))  # (B, n, 3, H, head_dim)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, n, head_dim)
        q = rotate_interleaved(self.q_norm(q), table)
        k = rotate_interleaved(self.k_norm(k), table)
        return q, k.to(v.dtype), v


class Prior(nn.Module):
    """Velocity v(z_t, t; history) of the linear path z_t = (1 - t) z_0 + t z_1, v = z_1 - z_0."""

    frequencies: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.latent_in = nn.Linear(config.latent_dim, dim)
        self.timestep_in = WideLinear(TIMESTEP_CHANNELS, dim)
        self.timestep_hidden = WideLinear(dim, dim)
        self.timestep_out = WideLinear(dim, dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.out_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.out_modulation = WideLinear(dim, 2 * dim)
        self.latent_out = nn.Linear(dim, config.latent_dim)
        self.register_buffer("frequencies", rotary_frequencies(config.rope_dim, 10_000.0))
        self.initialise()

    def initialise(self) -> None:
        """AdaLN and output projection zero (each block starts as the identity), the rest Xavier."""
        if self.latent_in.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for linear in (self.timestep_in, self.timestep_hidden, self.timestep_out):
            nn.init.normal_(linear.weight, std=0.02)
        for block in self.each_block():
            nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(self.out_modulation.weight)
        nn.init.zeros_(self.latent_out.weight)

    def each_block(self) -> list[Block]:
        """The blocks, as such."""
        return cast("list[Block]", list(self.blocks))

    def embed_timesteps(self, t: Tensor) -> Tensor:
        """t (...) in [0, 1] -> (..., D)."""
        h = F.silu(self.timestep_in(timestep_sinusoid(t)))
        return self.timestep_out(F.silu(self.timestep_hidden(h)))

    def modulation(self, t: Tensor) -> Modulation:
        """The modulation of timesteps t in [0, 1].

        t (groups,): the same for all rows, also a table over a step grid (see `Modulation.step`);
        t (B, groups): own timesteps for each row. A group is n / groups consecutive positions.
        """
        t = t.unsqueeze(0) if t.dim() == 1 else t
        condition = F.silu(self.embed_timesteps(t))  # (B or 1, groups, D)
        layers = [block.modulation(condition) for block in self.each_block()]
        blocks = torch.stack(layers).unflatten(-1, (6, -1))  # (layers, B, groups, 6, D)
        output = self.out_modulation(condition).unflatten(-1, (2, -1))  # (B, groups, 2, D)
        if (dtype := self.latent_in.weight.dtype).itemsize < 4:  # weights in half precision
            blocks, output = blocks.to(dtype), output.to(dtype)
        return Modulation(
            blocks.permute(0, 3, 1, 2, 4).unsqueeze(-2), output.permute(2, 0, 1, 3).unsqueeze(-2)
        )

    def rotation(self, positions: Tensor) -> Rotation:
        """The rotary table of positions (n,) or (B, n)."""
        return rotation(positions, self.frequencies)

    def forward(self, z: Tensor, modulation: Modulation, table: Rotation, attend: Attend) -> Tensor:
        """z (B, n, d) -> velocity (B, n, d)."""
        x = self.latent_in(z.to(self.latent_in.weight.dtype))
        for block in self.each_block():
            x, _, _ = block(x, modulation.layer(block.layer), table, attend)
        return self.latent_out(modulation.last().norm(self.out_norm(x), 0))

    def remember(
        self, z: Tensor, modulation: Modulation, table: Rotation, attend: Attend
    ) -> list[tuple[Tensor, Tensor]]:
        """The keys and values of z (B, n, d) in every layer, (B, H, n, head_dim) each.

        The last block computes nothing else, and `attend` gets no queries from it.
        """
        x = self.latent_in(z.to(self.latent_in.weight.dtype))
        kept = []
        for block in self.each_block():
            last = block.layer + 1 == self.config.layers
            x, k, v = block(x, modulation.layer(block.layer), table, attend, last)
            kept.append((k, v))
        return kept


def timestep_sinusoid(t: Tensor) -> Tensor:
    """[sin | cos] of 1000 t at 128 frequencies from 1 to 1/10000, float32 (..., 256)."""
    half = TIMESTEP_CHANNELS // 2
    t = wide(t)
    steps = torch.arange(half, dtype=t.dtype, device=t.device)
    angles = (t * TIMESTEP_SCALE).unsqueeze(-1) * torch.exp(steps * (-math.log(10_000.0) / half))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def _put(x: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """x (B, n, D) with `rows` (k, D) at `places` (k,) of its B n positions, changed in place."""
    x.flatten(0, 1).index_copy_(0, places, rows.to(x.dtype))
    return x
