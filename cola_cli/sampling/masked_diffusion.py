"""Generation by the masked-diffusion baseline: masks filled in where the model is surest (LLaDA).

The continuation starts as masks, as many as new tokens are wanted. In every pass all masked tokens of the
current block are predicted; the most confident ones stay, the others are masked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cola_cli.models.transformer import Transformer
from cola_cli.sampling.engine import cut
from cola_cli.sampling.noise import TOKENS, generator
from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.sampler import Sampler
from cola_cli.sampling.tokens import choose, require_finite
from cola_cli.settings.sample import SamplingOptions


@dataclass(frozen=True)
class _Pass:
    """Number `index` of a block [start, stop) of new tokens: `count` of its masks are filled."""

    start: int
    stop: int
    index: int
    count: int


@dataclass
class _Row:
    request: Request
    slot: int
    options: SamplingOptions
    ids: Tensor  # (prompt + budget,), masks where nothing is filled in
    passes: list[_Pass]  # that are to come


class MaskedDiffusionSampler(Sampler[_Row]):
    """Continues prompts with a bidirectional transformer; rows of equal length go together where their
    passes are the same."""

    def __init__(self, network: Transformer, options: SamplingOptions, batch_size: int) -> None:
        super().__init__(options, batch_size)
        self.network = network
        self.device = network.token_out.weight.device

    def join(self, requests: list[Request]) -> None:
        """Put the budgets of masks behind the prompts."""
        for request in requests:
            options, prompt = self._options(request), list(request.prompt)
            if options.max_new_tokens is None:
                raise ValueError("a masked-diffusion model needs max_new_tokens")
            if options.repetition_penalty != 1.0:
                raise ValueError("a masked-diffusion model has no repetition penalty")
            masks = [self.network.config.mask_token_id] * options.max_new_tokens
            passes = [
                _Pass(start, stop, index, count)
                for start, stop, passes in options.unmask_blocks(options.max_new_tokens)
                for index, count in enumerate(shares(stop - start, passes))
            ]
            ids = torch.tensor(prompt + masks, device=self.device)
            self.active.append(_Row(request, self._slots.take(), options, ids, passes))

    @torch.inference_mode()
    def step(self) -> list[tuple[Request, Generation]]:
        """One pass for each row; the generations so far of those that have finished a block."""
        found = []
        for rows in self._alike():
            self._fill(rows, rows[0].passes[0])
            for row in rows:
                stop = row.passes.pop(0).stop
                if row.passes and row.passes[0].stop == stop:
                    continue
                prompt = len(row.request.prompt)
                generation = cut(row.ids[prompt : prompt + stop].tolist(), row.options)
                if generation.finish != "running":
                    self._remove(row)
                found.append((row.request, generation))
        return found

    def _alike(self) -> list[list[_Row]]:
        """The active rows in groups with prompts of one length and the same passes to come."""
        groups: dict[Any, list[_Row]] = {}
        for row in self.active:
            groups.setdefault((len(row.request.prompt), *row.passes), []).append(row)
        return list(groups.values())

    def _fill(self, rows: list[_Row], taken: _Pass) -> None:
        """Fill the masks of the block whose prediction is surest."""
        ids = torch.stack([row.ids for row in rows])
        length = len(rows[0].request.prompt)
        block = slice(length + taken.start, length + taken.stop)
        hidden = self.network.hidden(ids)[:, block]
        logits = require_finite(self.network.token_out(hidden).float())  # (rows, block, vocab)
        chosen = self._choose(logits, rows, taken)
        chances = logits.softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        masked = ids[:, block] == self.network.config.mask_token_id
        surest = chances.masked_fill(~masked, -1.0).topk(taken.count, dim=-1).indices
        ids[:, block] = ids[:, block].scatter(-1, surest, chosen.gather(-1, surest))
        for row, own in zip(rows, ids, strict=True):
            row.ids = own

    def _choose(self, logits: Tensor, rows: list[_Row], taken: _Pass) -> Tensor:
        if all(row.options.takes_likeliest for row in rows):
            return logits.argmax(-1)
        return torch.stack(
            [self._drawn(row, own, taken) for row, own in zip(rows, logits, strict=True)]
        )

    def _drawn(self, row: _Row, logits: Tensor, taken: _Pass) -> Tensor:
        purpose = f"{TOKENS}/{taken.index}"
        source = generator(row.options.seed, row.request.item, taken.start, purpose)
        return choose(logits, row.options, source)


def shares(tokens: int, passes: int) -> list[int]:
    """How many masks each pass fills: as even as can be, larger ones first."""
    passes = min(passes, tokens)
    return [tokens // passes + (index < tokens % passes) for index in range(passes)]
