"""What continues prompts: rows join and leave between two steps, of which a run takes as many as it needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.slots import Slots
from cola_cli.settings.sample import SamplingOptions


class ActiveRow(Protocol):
    """A request being continued, in a place of its own."""

    request: Request
    slot: int


RowT = TypeVar("RowT", bound=ActiveRow)


class Sampler(ABC, Generic[RowT]):
    """Continues prompts, up to `batch_size` at a time.

    What a prompt yields depends on its item number, its options and the networks, never on the batch.
    """

    def __init__(self, options: SamplingOptions, batch_size: int) -> None:
        """options: of requests without options of their own."""
        self.options, self.batch_size = options, batch_size
        self.active: list[RowT] = []
        self._slots = Slots(batch_size)

    @property
    def free(self) -> int:
        """How many requests more may join."""
        return self._slots.free

    @abstractmethod
    def join(self, requests: list[Request]) -> None:
        """Take in requests, at most `free`; their prompts are computed."""

    @abstractmethod
    def step(self) -> list[tuple[Request, Generation]]:
        """Take active rows on; the generations so far of some. Those that are not "running" have left."""

    def leave(self, goes: Callable[[Request], bool]) -> None:
        """Let requests go before they are done."""
        for row in [row for row in self.active if goes(row.request)]:
            self._remove(row)

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generation]]:
        """Yield a request's generation so far, now and then and at its end; the last is not "running"."""
        self.leave(lambda request: True)  # what is left of a run that was given up
        waiting = iter(requests)
        while True:
            self.join(list(islice(waiting, self.free)))
            if not self.active:
                return
            yield from self.step()

    def _options(self, request: Request) -> SamplingOptions:
        return request.options or self.options

    def _remove(self, row: RowT) -> None:
        self.active.remove(row)
        self._slots.give_back(row.slot)
