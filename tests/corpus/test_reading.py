"""Readers visit each sequence once an epoch, whatever the number of processes and wherever they resume."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_cli.corpus import sequences
from cola_cli.corpus.sequences import Rows, Sequences, Shuffled


def numbered(count: int) -> Sequences:
    """`count` sequences in memory, each of one token: its number."""

    def read(start: int, stop: int) -> Rows:
        numbers = np.arange(start, stop)
        return Rows(numbers, numbers[:, None], np.ones(stop - start, np.int64))

    return cast(Any, SimpleNamespace(count=count, read=read, fetch_ahead=lambda numbers: None))


@settings(max_examples=60)
@given(
    count=st.integers(1, 60),
    batch=st.integers(1, 8),
    world=st.integers(1, 8),
    window=st.integers(1, 20),
    chunk=st.integers(1, 9),
    seed=st.integers(0, 5),
    resumed=st.integers(0, 30),
)
def test_each_sequence_is_visited_once_an_epoch_for_any_world_size(
    count: int, batch: int, world: int, window: int, chunk: int, seed: int, resumed: int
) -> None:
    """As the training reader asks: rank r takes the places r, r + world ... of every global batch."""
    size = batch * world
    steps = -(-3 * count // size)

    def seen(first: int, window: int = window) -> list[int]:
        ranks = [Shuffled(numbered(count), seed, window) for _ in range(world)]
        order = []
        for step in range(first, steps):
            places = [
                [step * size + place for place in range(r, size, world)] for r in range(world)
            ]
            read = [ranks[r].read(places[r]) for r in range(world)]
            assert all((rows.tokens[:, 0] == rows.rows).all() for rows in read)
            # place p of the global batch is the p // world-th of rank p % world
            order += [int(read[p % world].rows[p // world]) for p in range(size)]
        return order

    before, sequences.CHUNK = sequences.CHUNK, chunk
    try:
        order = seen(0)
        for epoch in range(3):
            assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))
        first = min(resumed, steps)
        assert seen(first) == order[first * size :]
    finally:
        sequences.CHUNK = before
