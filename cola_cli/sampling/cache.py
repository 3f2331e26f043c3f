"""Static caches of keys and values, and attention over them without padding.

Keys are stored normalised and rotated, values as they are; each is written once, in place. A row owns a
slot. Rows of equal fill in neighbouring slots are served by one attention call on a view of the cache;
nothing is gathered, masked or copied for rows of other lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.models.attention import block_causal_mask
from cola_cli.sampling.fast.cpu_attention import BlockAttention


@dataclass(frozen=True)
class Run:
    """Entries [start, stop) of a batch, in slots from `slot` on, that all have `fill` cached positions."""

    start: int
    stop: int
    slot: int
    fill: int


def runs(slots: Sequence[int], fills: Sequence[int], start: int = 0) -> list[Run]:
    """Group consecutive entries whose slots are neighbours and whose fills are equal."""
    found: list[Run] = []
    for offset, (slot, fill) in enumerate(zip(slots, fills, strict=True)):
        entry = start + offset
        last = found[-1] if found else None
        if last and last.fill == fill and last.slot + (last.stop - last.start) == slot:
            found[-1] = Run(last.start, entry + 1, last.slot, fill)
        else:
            found.append(Run(entry, entry + 1, slot, fill))
    return found


class KeyValueCache:
    """Keys and values of one network: for each layer (rows, heads, length, head_dim)."""

    def __init__(
        self, layers: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.device = device
        empty = torch.empty(0, heads, 0, head_dim, dtype=dtype, device=device)
        self.keys, self.values = [empty] * layers, [empty] * layers

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

    def store(self, layer: int, run: Run, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (rows, H, n, head_dim) of the run's entries behind its fill; all keys and values."""
        slots = slice(run.slot, run.slot + run.stop - run.start)
        end = run.fill + k.shape[2]
        keys, values = self.keys[layer][slots], self.values[layer][slots]
        keys[:, :, run.fill : end] = k
        values[:, :, run.fill : end] = v
        return keys[:, :, :end], values[:, :, :end]


class RunAttention:
    """Attention of one pass of the prior: entries [committed blocks | noisy blocks | blocks alone].

    A committed block is stored for good, a noisy one behind it (the next pass overwrites it). A block alone,
    the unconditional one, sees only itself.
    """

    def __init__(self, cache: KeyValueCache, commits: list[Run], noisy: list[Run], alone: slice):
        self._cache = cache
        self._cached = [*commits, *noisy]
        self._alone = alone

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (entries, block, H, head_dim) -> the same shape."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        pieces = []
        for run in self._cached:
            entries = slice(run.start, run.stop)
            keys, values = self._cache.store(layer, run, k[entries], v[entries])
            pieces.append(F.scaled_dot_product_attention(q[entries], keys, values))
        alone = self._alone
        if alone.stop > alone.start:
            pieces.append(F.scaled_dot_product_attention(q[alone], k[alone], v[alone]))
        # the kernels write (entries, block, H, head_dim), so that only joining copies
        outs = [piece.transpose(1, 2) for piece in pieces]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


class NativeAttention:
    """What `RunAttention` does and, before it, norms and rotation, by one compiled function."""

    def __init__(
        self,
        kernel: BlockAttention,
        norms: Sequence[tuple[Tensor, Tensor]],
        cache: KeyValueCache,
        slots: list[int],
        fills: list[int],
        turns: Tensor,
    ) -> None:
        """norms: of queries and keys in each layer; slots and fills: of the entries that have a cache, those
        alone follow; turns: the rotary table of all."""
        self._kernel, self._norms, self._cache, self._turns = kernel, norms, cache, turns
        entries, block, _, half = turns.shape
        alone = entries - len(slots)
        self._slots = torch.tensor([*slots, *(-1 - place for place in range(alone))])
        self._fills = torch.tensor([*fills, *[0] * alone])
        self._alone = torch.empty(alone, cache.keys[0].shape[1], 2, block, 2 * half)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv (entries, block, 3, H, head_dim) -> (entries, block, H, head_dim)."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        return self._kernel(
            qkv, *self._norms[layer], self._turns, keys, values, self._alone,
            self._slots, self._fills,
        )  # fmt: skip


class CausalAttention:
    """Attention of new positions behind cached ones, block-causal with the network's own block size."""

    def __init__(
        self, cache: KeyValueCache, entries: list[Run], new: int, block_size: int, offset: int = 0
    ) -> None:
        """`new` positions an entry; positions start at `offset` (left padding) where the cache starts."""
        self._cache = cache
        self._entries = entries
        device = cache.device
        self._masks = {
            run.fill: _mask(new, run.fill + new, block_size, offset, device) for run in entries
        }

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (entries, H, new, head_dim) -> the same shape; q may be empty (keys only)."""
        pieces = []
        for run in self._entries:
            entries = slice(run.start, run.stop)
            keys, values = self._cache.store(layer, run, k[entries], v[entries])
            if q.shape[2]:
                mask = self._masks[run.fill]
                pieces.append(
                    F.scaled_dot_product_attention(q[entries], keys, values, attn_mask=mask)
                )
        if not pieces:
            return q
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _mask(new: int, keys: int, block_size: int, offset: int, device: torch.device) -> Tensor:
    whole = block_causal_mask(new, offset + keys, block_size, device)
    return whole[:, offset:]
