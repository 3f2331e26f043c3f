"""AdaLN: shifts, scales and gates from timesteps, computed once per distinct timestep, not per token."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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
    n / groups consecutive positions; times (B or 1, groups) are theirs. At `places`, indices into the B n
    positions, the modulation of t = 0 holds instead: clean_blocks (layers, 6, D) and clean_output (2, D).
    """

    blocks: Tensor
    output: Tensor
    times: Tensor
    places: Tensor | None = None
    clean_blocks: Tensor | None = None
    clean_output: Tensor | None = None

    def with_clean(self, places: Tensor, zero: Modulation) -> Modulation:
        """The same with the positions at `places` at t = 0; `zero` is the modulation of t = 0."""
        blocks, output = zero.blocks[:, :, 0, 0, 0], zero.output[:, 0, 0, 0]
        return self._replace(places=places, clean_blocks=blocks, clean_output=output)

    def times_of(self, rows: int, length: int) -> Tensor:
        """The times of the positions (rows, length)."""
        times = self.times.repeat_interleave(length // self.times.shape[1], 1).expand(rows, -1)
        if self.places is None:
            return times
        return times.flatten().index_fill(0, self.places, 0).view(rows, length)

    def layer(self, layer: int) -> LayerModulation:
        """The modulation of one block: shift, scale, gate of attention, then of the MLP."""
        clean = None if self.clean_blocks is None else self.clean_blocks[layer]
        return LayerModulation(self.blocks[layer], clean, self.places)

    def last(self) -> LayerModulation:
        """The modulation of the last norm: shift, scale."""
        return LayerModulation(self.output, self.clean_output, self.places)


class LevelModulation(NamedTuple):
    """Shifts, scales and gates where each position has a timestep of its own, out of few.

    blocks (layers, 6, levels, D), output (2, levels, D) and times (levels,) are tables; `levels` (B, n) has
    the row of each position.
    """

    blocks: Tensor
    output: Tensor
    times: Tensor
    levels: Tensor

    def times_of(self, rows: int, length: int) -> Tensor:
        """The times of the positions (rows, length)."""
        return self.times[self.levels].expand(rows, length)

    def layer(self, layer: int) -> LevelLayerModulation:
        """The modulation of one block: shift, scale, gate of attention, then of the MLP."""
        return LevelLayerModulation(self.blocks[layer].unbind(0), self.levels)

    def last(self) -> LevelLayerModulation:
        """The modulation of the last norm: shift, scale."""
        return LevelLayerModulation(self.output.unbind(0), self.levels)


class LevelLayerModulation(NamedTuple):
    """The modulation of one norm or block: tables (levels, D) of shifts, scales and gates."""

    tables: tuple[Tensor, ...]
    levels: Tensor

    def norm(self, x: Tensor, row: int) -> Tensor:
        """x * (1 + scale) + shift with shift and scale in tables `row` and `row + 1`; x (B, n, D)."""
        shift, scale = (F.embedding(self.levels, self.tables[r]) for r in (row, row + 1))
        return torch.addcmul(shift, x, 1 + scale)

    def gate(self, x: Tensor, row: int) -> Tensor:
        """x * gate with the gate in table `row`; x (B, n, D)."""
        return x * F.embedding(self.levels, self.tables[row])


def _put(x: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """x (B, n, D) with `rows` (k, D) at `places` (k,) of its B n positions, changed in place."""
    x.flatten(0, 1).index_copy_(0, places, rows.to(x.dtype))
    return x
