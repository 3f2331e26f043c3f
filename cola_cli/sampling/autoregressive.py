"""Token-by-token generation by the autoregressive baseline, with a static cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from cola_cli.models.transformer import Transformer
from cola_cli.sampling.cache import CausalAttention, KeyValueCache, stretches
from cola_cli.sampling.engine import cut
from cola_cli.sampling.fast.fused_prior import can_pack
from cola_cli.sampling.fast.fused_transformer import FusedTransformer
from cola_cli.sampling.fast.side_by_side import SideBySide
from cola_cli.sampling.noise import TOKENS, generator
from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.sampler import Sampler
from cola_cli.sampling.tokens import choose, log_probabilities, penalised, require_finite
from cola_cli.settings.sample import SamplingOptions

SHOWN_EVERY = 8  # tokens between two looks at a running generation


@dataclass
class _Row:
    request: Request
    slot: int
    options: SamplingOptions
    last: int  # the token whose successor is next
    fill: int  # cached positions
    ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)


class AutoregressiveSampler(Sampler[_Row]):
    """Continues prompts with a causal transformer; rows join and leave at any token."""

    def __init__(self, network: Transformer, options: SamplingOptions, batch_size: int) -> None:
        super().__init__(options, batch_size)
        fast = can_pack(network.token_out.weight)
        self.network = FusedTransformer(network) if fast else network
        self.device = network.token_out.weight.device
        self._cache = KeyValueCache(network.config.layers, network.config, network.token_out.weight)
        weights = sum(weight.numel() for weight in network.blocks[0].parameters())
        self._side_by_side = SideBySide(weights, positions=1)

    @torch.inference_mode()
    def step(self) -> list[tuple[Request, Generation]]:
        """Every row's next token; the generations so far of those that end, and of all now and then."""
        rows, found = list(self.active), []
        logits = self._next_logits(rows)
        for row, own, token in zip(rows, logits, self._chosen(rows, logits), strict=True):
            row.ids.append(token)
            row.last, row.fill = token, row.fill + 1
            generation = cut(row.ids, row.options)
            if row.request.logprobs is not None:
                row.logprobs.append(log_probabilities(own, token, row.request.logprobs))
                generation = replace(generation, logprobs=row.logprobs[: len(generation.ids)])
            if generation.finish != "running":
                self._remove(row)
            if generation.finish != "running" or len(row.ids) % SHOWN_EVERY == 0:
                found.append((row.request, generation))
        return found

    @torch.inference_mode()
    def join(self, requests: list[Request]) -> None:
        """Give prompts slots and cache all their tokens but the last."""
        rows, length = [], 0
        for request in requests:
            options, prompt = self._options(request), request.prompt
            if not prompt:
                raise ValueError("an autoregressive model cannot continue an empty prompt")
            if options.max_new_tokens is None:
                raise ValueError("an autoregressive model needs max_new_tokens")
            length = max(length, len(prompt) + options.max_new_tokens - 1)
            rows.append(_Row(request, self._slots.take(), options, prompt[-1], len(prompt) - 1))
        self._cache.reserve(max((row.slot + 1 for row in rows), default=0), length)
        for count, members in groupby(rows, key=lambda row: row.fill):
            if count:
                group = list(members)
                entries = stretches([row.slot for row in group], [0] * len(group))
                ids = [list(row.request.prompt[:-1]) for row in group]
                attend = CausalAttention(self._cache, entries, count, 1)
                positions = torch.arange(count, device=self.device).expand(len(ids), count)
                self.network.hidden(torch.tensor(ids, device=self.device), positions, attend)
        self.active = sorted([*self.active, *rows], key=lambda row: row.slot)

    def _next_logits(self, rows: list[_Row]) -> Tensor:
        """(rows, vocab) float32 of the next token of every row."""
        last = torch.tensor([[row.last] for row in rows], device=self.device)
        if self.device.type == "cpu":
            logits = self._side_by_side.run(self._logits, rows, last)
        else:
            logits = self._logits(rows, last)
        return require_finite(logits)

    def _chosen(self, rows: list[_Row], logits: Tensor) -> list[int]:
        if all(row.options.takes_likeliest for row in rows):
            found: list[int] = logits.argmax(-1).tolist()
            return found
        return [int(self._choose(row, own)) for row, own in zip(rows, logits, strict=True)]

    def _logits(self, rows: list[_Row], last: Tensor) -> Tensor:
        """(rows, vocab) float32 after the tokens `last` (rows, 1)."""
        fills = [row.fill for row in rows]
        positions = torch.tensor(fills, device=self.device).unsqueeze(1)
        attend = CausalAttention(self._cache, stretches([row.slot for row in rows], fills), 1, 1)
        return self.network(last, positions, attend)[:, 0].float()

    def _choose(self, row: _Row, logits: Tensor) -> Tensor:
        options = row.options
        seen = torch.tensor(row.ids, dtype=torch.int64, device=self.device)
        logits = penalised(logits.unsqueeze(0), seen, options.repetition_penalty)
        source = generator(options.seed, row.request.item, len(row.ids), TOKENS)
        return choose(logits, options, source)[0]
