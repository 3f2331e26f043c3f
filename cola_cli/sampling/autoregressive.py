"""Token-by-token generation by the autoregressive baseline, with a static cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice

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
from cola_cli.sampling.slots import Slots
from cola_cli.sampling.tokens import GREEDY_BELOW, choose, penalised, require_finite
from cola_cli.settings.sample import SamplingOptions

SHOWN_EVERY = 8  # tokens between two looks at a running generation


@dataclass
class _Row:
    request: Request
    slot: int
    last: int  # the token whose successor is next
    fill: int  # cached positions
    ids: list[int] = field(default_factory=list)


class AutoregressiveSampler:
    """Continues prompts with a causal transformer, up to `batch_size` at a time.

    Rows join and leave at any token. A continuation depends on its item number, the options and the network,
    never on the batch.
    """

    def __init__(self, network: Transformer, options: SamplingOptions, batch_size: int) -> None:
        if options.max_new_tokens is None:
            raise ValueError("an autoregressive model needs max_new_tokens")
        self.options, self.batch_size = options, batch_size
        fast = can_pack(network.token_out.weight)
        self.network = FusedTransformer(network) if fast else network
        self.budget = options.max_new_tokens
        self.device = network.token_out.weight.device
        self._cache = KeyValueCache(network.config.layers, network.config, network.token_out.weight)
        self._side_by_side = SideBySide()

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generation]]:
        """Yield a request's generation so far, now and then and at its end; the last is not "running"."""
        waiting = iter(requests)
        active: list[_Row] = []
        slots = Slots(self.batch_size)
        while True:
            fresh = self._admit(list(islice(waiting, slots.free)), slots)
            active = sorted([*active, *fresh], key=lambda row: row.slot)
            if not active:
                return
            for row, token in zip(list(active), self._next(active), strict=True):
                row.ids.append(token)
                row.last, row.fill = token, row.fill + 1
                generation = cut(row.ids, self.options)
                if generation.finish != "running":
                    active.remove(row)
                    slots.give_back(row.slot)
                if generation.finish != "running" or len(row.ids) % SHOWN_EVERY == 0:
                    yield row.request, generation

    def _admit(self, requests: list[Request], slots: Slots) -> list[_Row]:
        """Give prompts slots and cache all their tokens but the last."""
        rows = []
        for request in requests:
            if not request.prompt:
                raise ValueError("an autoregressive model cannot continue an empty prompt")
            rows.append(_Row(request, slots.take(), request.prompt[-1], len(request.prompt) - 1))
        if rows:
            length = max(row.fill for row in rows) + self.budget
            self._cache.reserve(max(row.slot for row in rows) + 1, length)
        for count, members in groupby(rows, key=lambda row: row.fill):
            if count:
                group = list(members)
                entries = stretches([row.slot for row in group], [0] * len(group))
                ids = [list(row.request.prompt[:-1]) for row in group]
                attend = CausalAttention(self._cache, entries, count, 1)
                positions = torch.arange(count, device=self.device).expand(len(ids), count)
                self.network.hidden(torch.tensor(ids, device=self.device), positions, attend)
        return rows

    def _next(self, rows: list[_Row]) -> list[int]:
        """The next token of every row."""
        last = torch.tensor([[row.last] for row in rows], device=self.device)
        if self.device.type == "cpu":
            logits = self._side_by_side.run(self._logits, rows, last)
        else:
            logits = self._logits(rows, last)
        logits = require_finite(logits)
        options = self.options
        if options.temperature < GREEDY_BELOW and options.repetition_penalty == 1.0:
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
        options = self.options
        seen = torch.tensor(row.ids, dtype=torch.int64, device=self.device)
        logits = penalised(logits.unsqueeze(0), seen, options.repetition_penalty)
        source = generator(options.seed, row.request.item, len(row.ids), TOKENS)
        return choose(logits, options, source)[0]
