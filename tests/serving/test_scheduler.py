"""The engine thread: whatever else it serves, a continuation is the one that `cola sample` gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_cli.api import LanguageModel
from cola_cli.errors import UsageError
from cola_cli.sampling.engine import Engine, Glimpse
from cola_cli.sampling.requests import Generation, Request
from cola_cli.serving.scheduler import Busy, Scheduler, Ticket
from cola_cli.settings.sample import SamplingOptions
from tests import golden
from tests.sampling.test_baselines import VOCABULARY, baseline

MODELS: list[LanguageModel] = [golden.detail_model(), baseline(causal=True), baseline(causal=False)]
OPTIONS = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 12),
        "steps": st.sampled_from([2, 3]),
        "guidance": st.sampled_from([1.0, 2.0, 3.0]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "top_k": st.sampled_from([None, 5]),
        "seed": st.integers(0, 3),
        "unmask_block": st.sampled_from([0, 4]),
        "stop_ids": st.sampled_from([(), (3, 7)]),
    }
)
JOBS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 20), st.integers(0, 5), OPTIONS, st.booleans()),
    min_size=1, max_size=8,
)  # fmt: skip


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler(rows=4, queue=8)
    yield made
    made.close()


class Waiting:
    """Tickets of one test, and what becomes of them."""

    def __init__(self) -> None:
        self.news = threading.Event()

    def ticket(
        self, model: LanguageModel, prompt: list[int], item: int = 0, **options: Any
    ) -> Ticket:
        watched = options.pop("watched", False)
        own = SamplingOptions(**options)
        return Ticket(model, Request(item, prompt, options=own), self.news.set, watched=watched)

    def until(self, ready: Any, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, "nothing happened"
            self.news.wait(0.05)
            self.news.clear()


def prompt(length: int) -> list[int]:
    source = torch.Generator().manual_seed(length)
    return torch.randint(0, VOCABULARY, (length,), generator=source).tolist()


def is_done(ticket: Ticket) -> bool:
    last = ticket.events[-1] if ticket.events else None
    return ticket.error is not None or (isinstance(last, Generation) and last.finish != "running")


def alone(ticket: Ticket) -> Generation:
    """The ticket's continuation in a batch of one."""
    options = ticket.request.options
    assert options is not None
    *_, (_, found) = ticket.model.stream_requests([ticket.request], options, 1)
    return found


@settings(max_examples=15)
@given(JOBS, st.data())
def test_a_continuation_does_not_depend_on_what_else_is_served(
    jobs: list[tuple[int, int, int, dict[str, Any], bool]], data: st.DataObject
) -> None:
    waiting, scheduler = Waiting(), Scheduler(rows=3, queue=8)
    try:
        tickets = [
            waiting.ticket(MODELS[model], prompt(length), item, watched=watched, **options)
            for model, length, item, options, watched in jobs
        ]
        for ticket in tickets:
            scheduler.submit([ticket])
            time.sleep(data.draw(st.sampled_from([0, 0.002])))
        leaver = data.draw(st.sampled_from(tickets))
        leaver.gone = data.draw(st.booleans())
        kept = [ticket for ticket in tickets if not ticket.gone]
        waiting.until(lambda: all(map(is_done, kept)))
        for ticket in kept:
            found, expected = ticket.events[-1], alone(ticket)
            assert isinstance(found, Generation)
            assert (found.ids, found.finish) == (expected.ids, expected.finish)
    finally:
        scheduler.close()


def test_those_who_ask_together_begin_together(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[int] = []
    join = Engine.join

    def counted(engine: Engine, requests: list[Request]) -> None:
        joined.append(len(requests))
        join(engine, requests)

    monkeypatch.setattr(Engine, "join", counted)
    monkeypatch.setattr("cola_cli.serving.scheduler.PAUSE", 1.0)
    monkeypatch.setattr("cola_cli.serving.scheduler.PATIENCE", 60.0)
    waiting = Waiting()
    tickets = [waiting.ticket(MODELS[0], prompt(5), n, max_new_tokens=8, steps=2) for n in range(4)]
    for ticket in tickets:
        scheduler.submit([ticket])
        time.sleep(0.02)
    waiting.until(lambda: all(map(is_done, tickets)))
    assert joined[0] == 4  # all rows: nobody else has to be waited for


def test_the_one_that_fails_is_alone_in_it(scheduler: Scheduler) -> None:
    """Guidance and penalty of one overflow; the others, in the same batch, do not notice."""
    waiting, model = Waiting(), MODELS[0]
    shared = {"max_new_tokens": 12, "steps": 2, "guidance": 2.0}
    good = [waiting.ticket(model, prompt(5), item, **shared) for item in range(3)]
    bad = waiting.ticket(
        model, prompt(5), 3, **shared | {"temperature": 1e-4, "repetition_penalty": 1e-40}
    )
    scheduler.submit([*good[:2], bad, good[2]])
    waiting.until(lambda: all(map(is_done, [*good, bad])))
    assert isinstance(bad.error, UsageError)
    for ticket in good:
        assert ticket.error is None
        assert isinstance(ticket.events[-1], Generation)
        assert ticket.events[-1].ids == alone(ticket).ids
    assert scheduler.alive


def test_when_memory_runs_out_fewer_go_on_at_a_time(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, model = Waiting(), MODELS[0]
    step = type(model.sampler(SamplingOptions(), 1, None)).step

    def greedy(sampler: Any) -> Any:
        if len(sampler.active) > 2:
            raise MemoryError
        return step(sampler)

    monkeypatch.setattr("cola_cli.sampling.engine.Engine.step", greedy)
    tickets = [
        waiting.ticket(model, prompt(5), item, max_new_tokens=8, steps=2) for item in range(8)
    ]
    scheduler.submit(tickets)
    waiting.until(lambda: all(map(is_done, tickets)))
    monkeypatch.undo()
    for ticket in tickets:
        assert isinstance(ticket.events[-1], Generation)
        assert ticket.events[-1].ids == alone(ticket).ids


def test_the_queue_is_bounded_and_all_choices_of_a_request_go_together(
    scheduler: Scheduler,
) -> None:
    waiting = Waiting()
    tickets = [waiting.ticket(MODELS[0], prompt(5), i, max_new_tokens=400) for i in range(13)]
    with pytest.raises(Busy):
        scheduler.submit(tickets)
    assert scheduler.waiting == 0
    scheduler.submit(tickets[:12])
    with pytest.raises(Busy):
        scheduler.submit(tickets[12:])
    for ticket in tickets:
        ticket.gone = True
    waiting.until(lambda: scheduler.active == scheduler.waiting == 0)
    scheduler.submit(tickets[:1])


def test_who_is_gone_frees_the_row_at_the_next_block(scheduler: Scheduler) -> None:
    waiting = Waiting()
    long = [waiting.ticket(MODELS[0], prompt(5), i, max_new_tokens=4000, steps=2) for i in range(4)]
    scheduler.submit(long)
    waiting.until(lambda: all(ticket.events for ticket in long))
    late = waiting.ticket(MODELS[0], prompt(5), 9, max_new_tokens=8, steps=2)
    scheduler.submit([late])
    long[1].gone = True
    waiting.until(lambda: is_done(late))
    assert not any(map(is_done, long))


def test_a_deadline_ends_those_who_wait_and_those_who_compute(scheduler: Scheduler) -> None:
    waiting = Waiting()
    long = [waiting.ticket(MODELS[0], prompt(5), i, max_new_tokens=4000, steps=2) for i in range(6)]
    for ticket in long:
        ticket.deadline = time.monotonic() + 0.3
    scheduler.submit(long)
    waiting.until(lambda: all(isinstance(ticket.error, TimeoutError) for ticket in long))
    waiting.until(lambda: scheduler.active == scheduler.waiting == 0)


def test_glimpses_come_in_order_before_the_block_that_they_become(scheduler: Scheduler) -> None:
    waiting = Waiting()
    watched = waiting.ticket(MODELS[0], prompt(5), max_new_tokens=7, steps=3, watched=True)
    scheduler.submit([watched])
    waiting.until(lambda: is_done(watched))
    kinds = [e.block if isinstance(e, Glimpse) else "text" for e in watched.events]
    assert kinds == [0, 0, 0, "text", 1, 1, 1, "text"]
    seen = watched.events[0]
    assert isinstance(seen, Glimpse)
    assert seen.t == 1.0
    assert len(seen.ids) == len(seen.chances) == 3  # the block begins with a token of the prompt
    assert all(0 < chance <= 1 for chance in seen.chances)


def test_what_is_unfinished_fails_when_the_thread_ends() -> None:
    waiting, scheduler = Waiting(), Scheduler(rows=1, queue=2)
    tickets = [waiting.ticket(MODELS[0], prompt(5), i, max_new_tokens=4000) for i in range(2)]
    scheduler.submit(tickets)
    waiting.until(lambda: scheduler.active)
    scheduler.close()
    assert all(isinstance(ticket.error, Busy) for ticket in tickets)
    with pytest.raises(Busy):
        scheduler.submit(tickets)
