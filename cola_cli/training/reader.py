"""Batches made ready in a background thread: rows read, noise drawn, arrays turned into tensors.

What a step sees is a pure function of (data seed, seed, step), so a reader starts at any step at once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cola_cli.corpus.sequences import Rows, Shuffled
from cola_cli.machine.processes import World
from cola_cli.training import randomness
from cola_cli.training.objectives.objective import Batch, Draws, Objective

AHEAD = 2  # steps prepared in advance
WAITING = "cola::wait_for_reader"  # what the profiler calls the time that training waits for data


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


class Steps:
    """The steps from `first` on, each prepared in a thread while the one before it computes."""

    def __init__(
        self,
        objective: Objective,
        shuffled: Shuffled,
        world: World,
        first: int,
        last: int,
        batch_size: int,
        micro_batch: int,
        seed: int,
    ) -> None:
        places = list(range(world.rank, batch_size, world.size))

        def prepare(step: int) -> Step:
            rows = shuffled.read([step * batch_size + place for place in places])
            return make_step(objective, rows, places, step, seed, micro_batch or len(places))

        self._queue: queue.Queue[Step | BaseException] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(prepare, first, last), daemon=True, name="reader"
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Step]:
        while True:
            with torch.profiler.record_function(WAITING):
                item = self._queue.get()
            if isinstance(item, StopIteration):
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stop the thread."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _run(self, prepare: Callable[[int], Step], first: int, last: int) -> None:
        try:
            for step in range(first, last):
                if self._stopped.is_set():
                    return
                self._queue.put(prepare(step))
            self._queue.put(StopIteration())
        except BaseException as error:  # handed over to the training thread
            self._queue.put(error)
