"""One thread that computes for everybody: continuations join and leave batches at block boundaries.

Continuations that agree on `SamplingOptions.shared` share the batches of a sampler; the samplers take turns.
Where a batch fails, its rows start again in halves until the one that fails is alone: results
depend on no neighbour, so the others lose nothing but time.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cola_cli.api import LanguageModel
from cola_cli.errors import ColaError, is_out_of_memory
from cola_cli.sampling.engine import Engine, Glimpse
from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.sampler import Sampler

SLICE = 0.05  # seconds of a sampler's turn: a step may be a token or a block
PAUSE = 0.002  # seconds in which the next of those who ask at the same moment must come
PATIENCE = 0.05  # seconds for all of them
IDLE = 4  # samplers kept with their packed weights while nobody uses them
GLIMPSES = 4096  # that a slow watcher may be behind


class Busy(Exception):
    """The queue is full, or the scheduler is closed."""


@dataclass(eq=False)
class Ticket:
    """A continuation that is wanted.

    model, request: with its options. changed: called on the engine's thread after each change. deadline: on
    the monotonic clock. watched: whether glimpses of its blocks are wanted. gone: set when nobody wants it
    any more. events: its generation so far, with the glimpses before it. error: why it ended without one.
    """

    model: LanguageModel
    request: Request
    changed: Callable[[], None]
    deadline: float = float("inf")
    watched: bool = False
    gone: bool = False
    events: deque[Glimpse | Generation] = field(default_factory=lambda: deque(maxlen=GLIMPSES))
    error: BaseException | None = None
    crowd: int = 0  # tickets of one crowd may share a batch

    def show(self, event: Glimpse | Generation) -> None:
        """Tell what is new; to one who does not watch, the latest generation alone."""
        if not self.watched:
            self.events.clear()
        self.events.append(event)
        self.changed()

    def fail(self, error: BaseException) -> None:
        """End it without a result."""
        self.error, self.gone = error, True
        self.changed()


@dataclass(eq=False)
class _Group:
    """A sampler and the tickets that it serves, by the identity of their requests."""

    sampler: Sampler[Any]
    tickets: dict[int, Ticket] = field(default_factory=dict)

    def take(self, tickets: list[Ticket]) -> None:
        self.tickets |= {id(ticket.request): ticket for ticket in tickets}

    def step(self, joining: list[Ticket]) -> list[Ticket]:
        """Drop what nobody wants any more, let others join, take a step; the tickets that are done."""
        self.sampler.leave(lambda request: self.tickets[id(request)].gone)
        self.sampler.join([ticket.request for ticket in joining])
        for request, generation in self.sampler.step() if self.sampler.active else []:
            self.tickets[id(request)].show(generation)
        kept = {id(row.request) for row in self.sampler.active}
        return [self.tickets.pop(key) for key in list(self.tickets) if key not in kept]

    def glimpse(self, seen: list[Glimpse]) -> None:
        for one in seen:
            self.tickets[id(one.request)].show(one)


class Scheduler:
    """Continues tickets, at most `rows` at a time, while at most `queue` more wait."""

    def __init__(self, rows: int, queue: int) -> None:
        self.rows, self.queue = rows, queue
        self.tokens = 0  # generated so far
        self._room = rows  # less than `rows` after memory ran out
        self._waiting: deque[Ticket] = deque()
        self._groups: dict[Any, _Group] = {}  # the one used last at the end
        self._crowds = itertools.count(1)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Tickets in the queue."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Tickets in batches."""
        return sum(len(group.tickets) for group in list(self._groups.values()))

    @property
    def alive(self) -> bool:
        """Whether the thread computes."""
        return self._thread.is_alive()

    def submit(self, tickets: list[Ticket]) -> None:
        """Queue tickets, all or none. Raises Busy where they have no place."""
        with self._changed:
            free = self._room - self.active + self.queue - len(self._waiting)
            if self._closed or not self.alive or len(tickets) > free:
                raise Busy
            self._waiting.extend(tickets)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the step that it is in; what is unfinished fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closed:
                self._round()
        finally:
            self._closed = True
            for ticket in [*self._waiting, *self._all()]:
                ticket.fail(Busy())

    def _all(self) -> Iterator[Ticket]:
        return (ticket for group in self._groups.values() for ticket in group.tickets.values())

    def _round(self) -> None:
        """Give free rows to those who wait, and take a step in each group."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.active or self._closed)
            if not self.active:
                self._gather()
            now = time.monotonic()
            for ticket in [*self._waiting, *self._all()]:
                if ticket.deadline < now and not ticket.gone:
                    ticket.fail(TimeoutError())
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.gone)
            free = max(0, self._room - self.active)
            fresh: dict[Any, list[Ticket]] = {key: [] for key in self._groups}
            for _ in range(min(free, len(self._waiting))):
                ticket = self._waiting.popleft()
                fresh.setdefault(_key(ticket), []).append(ticket)
        busy = {
            k: v for k, v in fresh.items() if v or (k in self._groups and self._groups[k].tickets)
        }
        for key, joining in busy.items():
            self._turn(key, joining, SLICE if len(busy) > 1 else 0.0)
        idle = [key for key, group in self._groups.items() if not group.tickets]
        for key in idle[:-IDLE]:
            del self._groups[key]

    def _gather(self) -> None:
        """Wait for those who ask at the same moment: their prompts are encoded together then, and blocks
        share all passes. The lock is held, and released while this waits."""
        end, came = time.monotonic() + PATIENCE, 0
        while came < len(self._waiting) < self._room and time.monotonic() < end:
            came = len(self._waiting)
            self._changed.wait(PAUSE)

    def _turn(self, key: Any, joining: list[Ticket], seconds: float) -> None:
        """Let tickets join a group, and take a step, or as many as begin within so many seconds."""
        end = time.monotonic() + seconds
        group = self._groups.pop(key, None)
        try:
            if group is None:
                group = _Group(self._sampler(joining[0]))
                if isinstance(group.sampler, Engine) and joining[0].watched:
                    group.sampler.on_step = group.glimpse
            self._groups[key] = group
            group.take(joining)
            done = len(group.step(joining))
            while group.tickets and time.monotonic() < end:
                done += len(group.step([]))
            self._room = min(self.rows, self._room + done)
        except Exception as error:
            self._groups.pop(key, None)
            self._part(joining if group is None else list(group.tickets.values()), error)

    def _sampler(self, ticket: Ticket) -> Sampler[Any]:
        model, options = ticket.model, ticket.request.options
        assert options is not None
        pad_id = None if model.tokenizer is None else model.tokenizer.pad_id
        return model.sampler(options, self.rows, pad_id)

    def _part(self, tickets: list[Ticket], error: Exception) -> None:
        """Their batch failed: let halves of them try again, apart, or end the only one."""
        tickets = [ticket for ticket in tickets if not ticket.gone]
        if len(tickets) == 1:
            tickets[0].fail(_reason(tickets[0].model, error))
            return
        half = len(tickets) // 2
        if is_out_of_memory(error):
            self._room = max(1, half)
        else:
            for part in (tickets[:half], tickets[half:]):
                crowd = next(self._crowds)
                for ticket in part:
                    ticket.crowd = crowd
        with self._changed:
            self._waiting.extendleft(reversed(tickets))


def _key(ticket: Ticket) -> tuple[Any, ...]:
    """Tickets of equal keys may share batches."""
    assert ticket.request.options is not None
    return (id(ticket.model), ticket.watched, ticket.crowd, ticket.request.options.shared())


def _reason(model: LanguageModel, error: Exception) -> BaseException:
    """The error that a client is told of; a fault of ours goes to stderr too."""
    if isinstance(error, FloatingPointError):
        return model.overflow()
    if is_out_of_memory(error):
        return MemoryError()
    if not isinstance(error, ColaError | ValueError):
        traceback.print_exception(error, file=sys.stderr)
    return error
