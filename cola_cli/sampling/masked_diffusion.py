"""Generation by the masked-diffusion baseline: masks filled in where the model is surest (LLaDA).

The continuation starts as masks, as many as new tokens are wanted. In every pass all masked tokens of the
current block are predicted; the most confident ones stay, the others are masked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from cola_cli.models.transformer import Transformer
from cola_cli.sampling.engine import cut
from cola_cli.sampling.noise import TOKENS, generator
from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.tokens import GREEDY_BELOW, choose, require_finite
from cola_cli.settings.sample import SamplingOptions


class MaskedDiffusionSampler:
    """Continues prompts with a bidirectional transformer; prompts of equal length go together."""

    def __init__(self, network: Transformer, options: SamplingOptions, batch_size: int) -> None:
        if options.max_new_tokens is None:
            raise ValueError("a masked-diffusion model needs max_new_tokens")
        if options.repetition_penalty != 1.0:
            raise ValueError("a masked-diffusion model has no repetition penalty")
        self.network, self.options, self.batch_size = network, options, batch_size
        self.budget = options.max_new_tokens
        self.device = network.token_out.weight.device

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generation]]:
        """Yield a request's generation so far after each of its blocks; the last is not "running"."""
        waiting = iter(requests)
        while batch := list(islice(waiting, self.batch_size)):
            for length in sorted({len(request.prompt) for request in batch}):
                yield from self._together([r for r in batch if len(r.prompt) == length], length)

    def _together(
        self, requests: list[Request], length: int
    ) -> Iterator[tuple[Request, Generation]]:
        mask = self.network.config.mask_token_id
        ids = torch.full((len(requests), length + self.budget), mask, device=self.device)
        if length:
            ids[:, :length] = torch.tensor([list(r.prompt) for r in requests], device=self.device)
        for start, stop, passes in self.options.unmask_blocks(self.budget):
            for index, count in enumerate(shares(stop - start, passes)):
                self._fill(ids, requests, slice(length + start, length + stop), start, index, count)
            unfinished = []
            for place, (request, own) in enumerate(zip(requests, ids.tolist(), strict=True)):
                generation = cut(own[length : length + stop], self.options)
                if generation.finish == "running":
                    unfinished.append(place)
                yield request, generation
            requests, ids = [requests[place] for place in unfinished], ids[unfinished]
            if not requests:
                return

    def _fill(
        self, ids: Tensor, requests: list[Request], block: slice, start: int, index: int, count: int
    ) -> None:
        """One pass: fill the `count` masks of the block whose prediction is surest."""
        hidden = self.network.hidden(ids)[:, block]
        logits = require_finite(self.network.token_out(hidden).float())  # (rows, block, vocab)
        chosen = self._choose(logits, requests, start, index)
        chances = logits.softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        masked = ids[:, block] == self.network.config.mask_token_id
        surest = chances.masked_fill(~masked, -1.0).topk(count, dim=-1).indices
        ids[:, block] = ids[:, block].scatter(-1, surest, chosen.gather(-1, surest))

    def _choose(self, logits: Tensor, requests: list[Request], start: int, index: int) -> Tensor:
        options = self.options
        if options.temperature < GREEDY_BELOW:
            return logits.argmax(-1)
        purpose = f"{TOKENS}/{index}"
        sources = [generator(options.seed, r.item, start, purpose) for r in requests]
        return torch.stack(
            [choose(own, options, one) for own, one in zip(logits, sources, strict=True)]
        )


def shares(tokens: int, passes: int) -> list[int]:
    """How many masks each pass fills: as even as can be, larger ones first."""
    passes = min(passes, tokens)
    return [tokens // passes + (index < tokens % passes) for index in range(passes)]
