"""Random numbers that belong to an item and a block, never to a place in a batch."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

NOISE, TOKENS, REPAINT, STEP = "noise", "tokens", "repaint", "step"


def generator(seed: int, item: int, block: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose in one block of one item."""
    text = f"{seed}/{item}/{block}/{purpose}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def block_noise(seed: int, item: int, block: int, shape: tuple[int, int], released: bool) -> Tensor:
    """The noise (block_size, d) that a block starts from.

    `released` draws what the released loop draws for that seed, item and block (its seeds collide for items
    10,000 apart).
    """
    if released:
        source = torch.Generator().manual_seed(seed + item * 1000 + block * 10_000_000)
    else:
        source = generator(seed, item, block, NOISE)
    return torch.randn(shape, generator=source)
