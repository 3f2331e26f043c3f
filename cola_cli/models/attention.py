"""Who sees whom: masks and attention patterns of block-causal latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# attend(layer, q, k, v) -> out, all (B, H, n, head_dim); q and k are normalised and rotated.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

CHUNK = 64  # queries at a time in training: fewer waste less, more give the kernels larger products


def block_causal_mask(
    queries: int, keys: int, block_size: int, device: torch.device | str = "cpu"
) -> Tensor:
    """(queries, keys) bool: a query sees the keys of its own and earlier blocks.

    The queries are the last `queries` of the `keys` positions.
    """
    query_block = torch.arange(keys - queries, keys, device=device) // block_size
    key_block = torch.arange(keys, device=device) // block_size
    return query_block[:, None] >= key_block[None, :]


def clean_and_noisy_mask(
    length: int, block_size: int, device: torch.device | str = "cpu"
) -> Tensor:
    """(2L - b, 2L - b) bool, for positions [clean without its last block | noisy].

    A clean query sees clean blocks up to its own; a noisy query sees earlier clean blocks and its own
    noisy block. The brute-force form of `CleanCopy` and `NoisyCopy`.
    """
    clean = earlier_length(length, block_size)
    block = torch.arange(length, device=device) // block_size
    block = torch.cat((block[:clean], block))
    noisy = torch.arange(clean + length, device=device) >= clean
    own = noisy[None, :] & (block[:, None] == block[None, :])
    earlier = ~noisy[None, :] & (block[:, None] > block[None, :])
    upto = ~noisy[None, :] & (block[:, None] >= block[None, :])
    return torch.where(noisy[:, None], own | earlier, upto)


def within_pieces(mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The mask (q, k) of whom queries see, without keys of other pieces: (B, 1, q, k).

    queries (B, q) and keys (B, k): which piece each is of.
    """
    return mask & (queries[:, None, :, None] == keys[:, None, None, :])


class BlockCausal:
    """Attention of consecutive positions, bidirectional within a block, causal across blocks.

    Each of the first `causal` positions sees none after it. pieces (B, n): positions see those of their piece
    alone.
    """

    def __init__(
        self,
        length: int,
        block_size: int,
        device: torch.device | str = "cpu",
        causal: int = 0,
        pieces: Tensor | None = None,
    ) -> None:
        self._causal = block_size == 1 and pieces is None
        single_block = length <= block_size and not causal and pieces is None
        self._mask: Tensor | None = None
        if not (self._causal or single_block):
            mask = block_causal_mask(length, length, block_size, device)
            mask[:causal].tril_()
            self._mask = mask if pieces is None else within_pieces(mask, pieces, pieces)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (B, H, n, head_dim) -> (B, H, n, head_dim)."""
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=self._mask, is_causal=self._causal and q.shape[2] > 1
        )


def apart(pieces: Tensor | None, block_size: int) -> Attend | None:
    """Block-causal attention within pieces (B, n); None without any: a network's usual attention."""
    if pieces is None:
        return None
    return BlockCausal(pieces.shape[1], block_size, pieces.device, pieces=pieces)


class CleanCopy:
    """Block-causal attention of the clean copy in training, within pieces (B, n >= length) if there are.

    Queries go `CHUNK` or so at a time, each chunk with the keys up to its end, so that little of what the
    rule forbids is computed.
    """

    def __init__(
        self,
        length: int,
        block_size: int,
        device: torch.device | str = "cpu",
        pieces: Tensor | None = None,
    ) -> None:
        self._chunks = []
        for start, stop in _chunks(length, block_size):
            mask = block_causal_mask(stop - start, stop, block_size, device)
            if pieces is not None:
                mask = within_pieces(mask, pieces[:, start:stop], pieces[:, :stop])
            self._chunks.append((start, stop, mask))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (B, H, L - b, head_dim) -> the same shape."""
        if not q.shape[2]:
            return q
        # split, not slices: their gradients are put together, not added up in full-size tensors
        queries = q.split([stop - start for start, stop, _ in self._chunks], 2)
        outs = [
            F.scaled_dot_product_attention(part, k[:, :, :stop], v[:, :, :stop], attn_mask=mask)
            for part, (_, stop, mask) in zip(queries, self._chunks, strict=True)
        ]
        return torch.cat(outs, 2)


class NoisyCopy:
    """Attention of the noisy copy in training: earlier clean blocks and the own noisy block.

    window (n,): the positions of the blocks that the copy holds, of the L of the sequence. pieces (B, L):
    which see those of their piece alone; None: all.
    """

    def __init__(
        self,
        clean: list[tuple[Tensor, Tensor]],
        window: Tensor,
        length: int,
        block_size: int,
        device: torch.device | str = "cpu",
        pieces: Tensor | None = None,
    ) -> None:
        self._clean = clean  # keys and values of the clean copy, by layer
        clean_length = earlier_length(length, block_size)
        mask = clean_and_noisy_mask(length, block_size, device)[clean_length:]
        self._chunks = []
        for start, stop in _chunks(len(window), block_size):
            own = window[start:stop]
            # as many as the last of all windows needs, so that one compiled program is right for each
            history = earlier_length(length - len(window) + stop, block_size)
            keys = torch.cat((torch.arange(history, device=device), clean_length + own))
            part = mask[own][:, keys]
            if pieces is not None:
                seen = torch.cat((pieces[:, :history], pieces[:, own]), 1)
                part = within_pieces(part, pieces[:, own], seen)
            self._chunks.append((start, stop, history, part))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (B, H, n, head_dim) -> the same shape."""
        clean_k, clean_v = self._clean[layer]
        sizes = [stop - start for start, stop, _, _ in self._chunks]
        outs = []
        for part, own_k, own_v, (_, _, history, mask) in zip(
            q.split(sizes, 2), k.split(sizes, 2), v.split(sizes, 2), self._chunks, strict=True
        ):
            keys = torch.cat((clean_k[:, :, :history], own_k), 2)
            values = torch.cat((clean_v[:, :, :history], own_v), 2)
            outs.append(F.scaled_dot_product_attention(part, keys, values, attn_mask=mask))
        return torch.cat(outs, 2)


def earlier_length(length: int, block_size: int) -> int:
    """Positions before the last block of `length` positions, which may be cut short."""
    return (length - 1) // block_size * block_size


def _chunks(length: int, block_size: int) -> list[tuple[int, int]]:
    """Whole blocks, about CHUNK positions together."""
    step = max(CHUNK // block_size, 1) * block_size
    return [(start, min(start + step, length)) for start in range(0, length, step)]
