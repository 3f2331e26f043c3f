"""Batches prepared in a background thread: rows read, noise drawn, arrays turned into tensors.

The content of a step is a pure function of (data seed, seed, step), so reading starts at any step at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from cola_cli.corpus.sequences import Rows, Shuffled
from cola_cli.machine.processes import World
from cola_cli.settings.training import Train
from cola_cli.training import randomness
from cola_cli.training.objectives.objective import Batch, Draws, Objective

AHEAD = 2  # steps prepared in advance
WAITING = "cola::wait_for_reader"  # the profiler's name for the time that training waits for data


@dataclass
class Step:
    """The micro-batches of one optimiser step on this process."""

    number: int
    batches: list[Batch]
    rows: list[int]  # numbers of the sequences, to name them when something is wrong with them
    counts: dict[str, float]  # sums of the weights, by name, on this process


def make_step(
    objective: Objective,
    rows: Rows,
    places: list[int],
    step: int,
    seed: int,
    micro_batch: int,
    stream: int = randomness.TRAINING,
) -> Step:
    """Draw for `rows`, which are at `places` of the global batch, and cut into micro-batches."""
    randoms = randomness.generators(seed, stream, step, places)
    validation = stream == randomness.VALIDATION
    drawn: list[Draws] = []
    for start in range(0, len(rows), micro_batch):
        part = slice(start, start + micro_batch)
        drawn += objective.draw(rows.take(part), randoms[part], step, validation)
    counts: dict[str, float] = {}
    for batch in drawn:
        for name, value in batch.items():
            if name.endswith("_weight"):
                counts[name] = counts.get(name, 0.0) + float(value.sum())
    return Step(step, [_tensors(batch) for batch in drawn], rows.rows.tolist(), counts)


def _tensors(drawn: Draws) -> Batch:
    pin = torch.cuda.is_available()
    batch: Batch = {}
    for name, value in drawn.items():
        if isinstance(value, np.ndarray | np.generic):
            tensor = torch.as_tensor(value)
            batch[name] = tensor.pin_memory() if pin else tensor
        else:
            batch[name] = value
    return batch


def scaled(batch: Batch, counts: dict[str, float], copies: int) -> Batch:
    """The batch with its weights divided by their sum over the global batch, times `copies`.

    Data-parallel wrappers average gradients over `copies` processes, where a sum is wanted.
    """
    return {
        name: value * (copies / max(counts[name], 1.0)) if name.endswith("_weight") else value
        for name, value in batch.items()
    }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def read_steps(
    objective: Objective,
    shuffled: Shuffled,
    world: World,
    train: Train,
    micro_batch: int,
    first: int,
) -> Generator[Step]:
    """The steps from `first` to the last, prepared in a thread while earlier ones compute.

    Close the generator to stop the thread.
    """
    places = list(range(world.rank, train.batch_size, world.size))

    def prepare(step: int) -> Step:
        rows = shuffled.read([step * train.batch_size + place for place in places])
        return make_step(objective, rows, places, step, train.seed, micro_batch)

    numbers = iter(range(first, train.steps))
    pool = ThreadPoolExecutor(1, "reader")
    try:
        ahead = deque(pool.submit(prepare, number) for number in islice(numbers, AHEAD))
        while ahead:
            ahead.extend(pool.submit(prepare, number) for number in islice(numbers, 1))
            with torch.profiler.record_function(WAITING):
                step = ahead.popleft().result()
            yield step
    finally:
        pool.shutdown(cancel_futures=True)
