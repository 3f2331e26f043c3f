"""Choosing tokens from logits: all positions of a block at once, each from its own logits."""

from __future__ import annotations

import torch
from torch import Tensor

from cola_cli.settings.sample import GREEDY_BELOW, Sampling


def require_finite(values: Tensor) -> Tensor:
    """The same values. Raises FloatingPointError if one is infinite or NaN."""
    low, high = values.aminmax()  # NaN comes through; isfinite would copy the values
    if not (low.isfinite() and high.isfinite()):
        raise FloatingPointError
    return values


def choose(logits: Tensor, options: Sampling, generator: torch.Generator | None) -> Tensor:
    """Tokens (n,) from logits (n, vocab); the generator lives on the CPU.

    Raises FloatingPointError where there is no distribution to draw from.
    """
    if options.temperature < GREEDY_BELOW:
        return logits.argmax(-1)
    chances = require_finite(
        probabilities(logits, options.temperature, options.top_k, options.top_p)
    )
    return torch.multinomial(chances.cpu(), 1, generator=generator).squeeze(-1).to(logits.device)


def probabilities(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """The distribution (n, vocab) that tokens are drawn from.

    top_k keeps everything that ties with the k-th; top_p keeps the token that crosses the threshold.
    """
    scaled = logits.float() / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        kth = scaled.topk(top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True)
        chances = ordered.softmax(-1)
        before = chances.cumsum(-1) - chances
        drop = (before > top_p).scatter(-1, order, before > top_p)
        scaled = scaled.masked_fill(drop, -torch.inf)
    return scaled.softmax(-1)


def log_probabilities(logits: Tensor, token: int, count: int) -> dict[int, float]:
    """Of a token and of the `count` likeliest ones, in nats, from logits (vocab,)."""
    found = logits.log_softmax(-1)
    values, tokens = found.topk(min(count, len(found)))
    return {token: float(found[token])} | dict(zip(tokens.tolist(), values.tolist(), strict=True))


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (n, vocab), those of the tokens `seen` (m,) divided (positive) or multiplied by `penalty`."""
    if penalty == 1.0 or not seen.numel():
        return logits
    seen = seen.unique()
    values = logits[:, seen]
    logits = logits.clone()
    logits[:, seen] = torch.where(values > 0, values / penalty, values * penalty)
    return logits
