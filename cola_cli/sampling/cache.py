"""Static caches of keys and values, and attention over them without padding.

Keys are stored normalised and rotated, values as they are; each is written once, in place. A row owns a
slot. Rows of equal fill in neighbouring slots are served by one attention call on a view of the cache;
nothing is gathered, masked or copied for rows of other lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.models.attention import block_causal_mask


@dataclass(frozen=True)
class Stretch:
    """Entries [start, stop) of a batch, in slots from `slot` on, that all have `fill` cached positions."""

    start: int
    stop: int
    slot: int
    fill: int


def stretches(slots: Sequence[int], fills: Sequence[int], start: int = 0) -> list[Stretch]:
    """Group consecutive entries whose slots are neighbours and whose fills are equal."""
    found: list[Stretch] = []
    for offset, (slot, fill) in enumerate(zip(slots, fills, strict=True)):
        entry = start + offset
        last = found[-1] if found else None
        if last and last.fill == fill and last.slot + (last.stop - last.start) == slot:
            found[-1] = Stretch(last.start, entry + 1, last.slot, fill)
        else:
            found.append(Stretch(entry, entry + 1, slot, fill))
    return found


class KeyValueCache:
    """Keys and values of one network: for each layer (rows, heads, length, head_dim).

    `said` (rows, said_dim) is what each row's last position said of the next one, 0 before the first.
    """

    def __init__(self, layers: int, config: Any, like: Tensor, said_dim: int = 0) -> None:
        """config: of the network, with its heads and head_dim; like: one of its weights."""
        self.device = like.device
        empty = like.new_empty(0, config.heads, 0, config.head_dim)
        self.keys, self.values = [empty] * layers, [empty] * layers
        self.said = like.new_empty(0, said_dim)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` slots of `length` positions; what is stored stays, the rest is zero."""
        old_rows, heads, old_length, head_dim = self.keys[0].shape
        if rows <= old_rows and length <= old_length:
            return
        shape = (max(rows, old_rows), heads, max(length, old_length), head_dim)
        for stored in (self.keys, self.values):
            # one at a time, as both are held while one is copied
            for layer, old in enumerate(stored):
                new = old.new_zeros(shape)
                new[:old_rows, :, :old_length] = old
                stored[layer] = new
                del old
        self.said = F.pad(self.said, (0, 0, 0, shape[0] - old_rows))

    def store(self, layer: int, stretch: Stretch, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (rows, H, n, head_dim) of the stretch behind its fill; all keys and values."""
        slots = slice(stretch.slot, stretch.slot + stretch.stop - stretch.start)
        end = stretch.fill + k.shape[2]
        keys, values = self.keys[layer][slots], self.values[layer][slots]
        keys[:, :, stretch.fill : end] = k
        values[:, :, stretch.fill : end] = v
        return keys[:, :, :end], values[:, :, :end]


class OwnBlockAttention:
    """Attention of the next block of one row: everything cached for the row, and the block itself."""

    def __init__(
        self, cache: KeyValueCache, slot: int, fill: int, mask: Tensor | None = None
    ) -> None:
        """mask (block, fill + block) bool: who sees whom; None: all see all."""
        self._cache, self._stretch, self._mask = cache, Stretch(0, 1, slot, fill), mask

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (1, H, block, head_dim) -> the same shape; q may be empty (keys only)."""
        keys, values = self._cache.store(layer, self._stretch, k, v)
        if not q.shape[2]:
            return q
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask)


class CausalAttention:
    """Attention of new positions behind cached ones, block-causal with the network's own block size."""

    def __init__(
        self,
        cache: KeyValueCache,
        entries: list[Stretch],
        new: int,
        block_size: int,
        offset: int = 0,
    ) -> None:
        """`new` positions an entry; positions start at `offset` (left padding) where the cache starts."""
        self._cache = cache
        self._entries = entries
        device = cache.device
        self._masks = {
            stretch.fill: _mask(new, stretch.fill + new, block_size, offset, device)
            for stretch in entries
        }

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (entries, H, new, head_dim) -> the same shape; q may be empty (keys only)."""
        pieces = []
        for stretch in self._entries:
            entries = slice(stretch.start, stretch.stop)
            keys, values = self._cache.store(layer, stretch, k[entries], v[entries])
            if q.shape[2]:
                mask = self._masks[stretch.fill]
                pieces.append(
                    F.scaled_dot_product_attention(q[entries], keys, values, attn_mask=mask)
                )
        if not pieces:
            return q
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _mask(new: int, keys: int, block_size: int, offset: int, device: torch.device) -> Tensor | None:
    if new == 1:  # it sees all
        return None
    whole = block_causal_mask(new, offset + keys, block_size, device)
    return whole[:, offset:]
