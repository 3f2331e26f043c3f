"""Prompts, what they became, and the state of one that is being continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cola_cli.settings.sample import SamplingOptions


@dataclass(frozen=True)
class Request:
    """One prompt. `item` seeds its random numbers; `noise` (blocks, block_size, d) replaces them.

    options: None for those of the sampler, from which they may differ where `SamplingOptions.shared` says.
    logprobs: of an autoregressive model, with how many of the likeliest tokens each new one is told.
    """

    item: int
    prompt: Sequence[int]
    noise: Tensor | None = None
    options: SamplingOptions | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Generation:
    """`ids`: the new tokens; `latents` (blocks, block_size, d): every generated block, pinned ones included
    (none from a baseline).

    finish: `stop` (an end token), `length` (the budget) or `running` (more blocks follow). `text` is set
    where a tokenizer is at hand. `logprobs`: for each new token, if the request asks, log-probabilities in
    nats given those before it, its own first, then of the likeliest ones.
    """

    ids: list[int]
    latents: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    finish: str = "length"
    text: str | None = None
    logprobs: list[dict[int, float]] = field(default_factory=list, repr=False)


@dataclass
class Generating:
    """A prompt being continued."""

    request: Request
    slot: int
    prefix: Tensor  # (n, d) prompt latents before the first block
    pinned: Tensor  # (k, d) prompt latents at the front of the first block
    position: int  # of the next block, in the prior
    trim: int  # prompt tokens at the front of the first block
    blocks: int  # to generate at most
    options: SamplingOptions
    decodes: bool  # whether the VAE's decoder says which tokens its latents are
    fill: int = 0  # latents in the prior's cache
    decoded: int = 0  # latents that were read
    pending: Tensor | None = None  # (block_size, d) generated, not yet committed
    ids: list[int] = field(default_factory=list)  # of all generated blocks, prompt part included
    latents: list[Tensor] = field(default_factory=list)

    @property
    def pins(self) -> int:
        """Known latents at the front of the next block."""
        return 0 if self.latents else len(self.pinned)
