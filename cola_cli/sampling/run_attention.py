"""Attention of a pass of the prior over cached keys and values, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.sampling.cache import KeyValueCache, runs
from cola_cli.sampling.lean import LeanPrior, repeated
from cola_cli.sampling.native import BlockAttention


@dataclass(frozen=True)
class Entries:
    """The blocks of a pass: [committed | noisy | alone].

    A committed block is stored for good, a noisy one behind it (the next pass overwrites it). A block alone,
    the unconditional one, sees only itself; it is a noisy one `again`, and up to the first attention both
    are one.
    """

    slots: list[int]  # of the committed and the noisy ones
    fills: list[int]  # what their slots hold before them
    positions: Tensor  # (committed + noisy, n)
    again: Tensor | None  # (alone,) places among the committed and noisy ones


class RunAttention:
    """Attention by torch's operations: rows of equal fill in neighbouring slots share a call."""

    def __init__(self, lean: LeanPrior, cache: KeyValueCache, entries: Entries) -> None:
        self._lean, self._cache, self._again = lean, cache, entries.again
        self._runs = runs(
            entries.slots, entries.fills
        )  # committed ones come first, and are stored first
        self._tables = _tables(lean, entries)
        self._alone = slice(len(entries.slots), None)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv (entries, n, 3, H, head_dim) -> (entries, n, H * head_dim), in layer 0 more of them."""
        q, k, v = self._lean.split(layer, qkv, self._tables[layer > 0])
        if layer == 0 and self._again is not None:
            q, k, v = (repeated(part, self._again) for part in (q, k, v))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        pieces = []
        for run in self._runs:
            entries = slice(run.start, run.stop)
            keys, values = self._cache.store(layer, run, k[entries], v[entries])
            pieces.append(F.scaled_dot_product_attention(q[entries], keys, values))
        if self._again is not None:
            alone = self._alone
            pieces.append(F.scaled_dot_product_attention(q[alone], k[alone], v[alone]))
        # the kernels write (entries, n, H, head_dim), so that only joining copies
        outs = [piece.transpose(1, 2).flatten(2) for piece in pieces]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


class NativeAttention:
    """The same by one compiled function."""

    def __init__(
        self, kernel: BlockAttention, lean: LeanPrior, cache: KeyValueCache, entries: Entries
    ) -> None:
        self._kernel, self._lean, self._cache = kernel, lean, cache
        self._tables = _tables(lean, entries)
        count, block = entries.positions.shape
        again = torch.arange(0) if entries.again is None else entries.again
        every = torch.arange(count + len(again))
        self._sources = (torch.cat((every[:count], again)), every)
        self._slots = torch.cat((torch.tensor(entries.slots), -1 - every[: len(again)]))
        self._fills = torch.tensor([*entries.fills, *[0] * len(again)])
        heads, head_dim = lean.config.heads, lean.config.head_dim
        self._alone = torch.empty(len(again), heads, 2, block, head_dim)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv (entries, n, 3, H, head_dim) -> (entries, n, H * head_dim), in layer 0 more of them."""
        weights = self._lean.layers[layer]
        return self._kernel(
            qkv,
            weights.q_norm,
            weights.k_norm,
            self._tables[layer > 0],
            self._cache.keys[layer],
            self._cache.values[layer],
            self._alone,
            self._sources[layer > 0],
            self._slots,
            self._fills,
        )


def _tables(lean: LeanPrior, entries: Entries) -> tuple[Tensor, Tensor]:
    """The rotary table in layer 0, and in later ones, where there are entries that came again."""
    table = lean.rotation(entries.positions)
    return table, table if entries.again is None else repeated(table, entries.again)
