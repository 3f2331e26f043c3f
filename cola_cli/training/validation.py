"""Validation on the first sequences of the split, with the same draws every time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cola_cli.corpus.sequences import Sequences
from cola_cli.errors import Diverged
from cola_cli.machine.processes import World
from cola_cli.settings.training import Train
from cola_cli.training import randomness
from cola_cli.training.objectives.objective import Batch, Objective
from cola_cli.training.reader import Step, make_step, scaled, to_device
from cola_cli.training.shares import Workers


@dataclass
class Validation:
    """The validation sequences of a run, shared out among its processes, `rows` at a time by `workers`."""

    objective: Objective
    sequences: Sequences
    train: Train
    world: World
    rows: int
    workers: Workers
    steps: list[Step] = field(default_factory=list)  # the same every time

    def sums(
        self, autocast: Callable[[], torch.autocast], asked: Callable[[], int]
    ) -> dict[str, Tensor]:
        """Weighted sums over the sequences of this process, of the networks as they are.

        Stops between batches, with a part of the sums, once `asked` says so.
        """
        world = self.world
        if not self.steps:
            self.steps = self._draw()
        counts: dict[str, float] = {}
        for step in self.steps:
            for name, value in step.counts.items():
                counts[name] = counts.get(name, 0.0) + value
        counts = world.total(counts)

        def compute(batch: Batch) -> dict[str, Tensor]:
            batch = to_device(scaled(batch, counts, 1), world.device)
            with torch.no_grad(), autocast():
                sums: dict[str, Tensor] = self.objective(batch, evaluate=True)
            return sums

        totals: dict[str, Tensor] = {}
        self.objective.eval()
        batches = [batch for step in self.steps for batch in step.batches]
        for sums in self.workers.each(compute, batches):
            for name, term in sums.items():
                totals[name] = totals.get(name, 0) + term.float()
            if asked():
                break
        self.objective.train()
        return totals

    def metrics(self, sums: dict[str, Tensor], step: int) -> dict[str, float]:
        """The metrics over all processes. Raises Diverged when the loss is not a finite number."""
        world = self.world
        totals = {name: world.total_tensor(sums[name]).cpu() for name in sorted(sums)}
        loss = totals["loss"].item()
        if not math.isfinite(loss):
            raise Diverged(
                f"step {step}: the loss of validation is {loss:.6g}.",
                "Lower optim.lr, and run again with --overwrite.",
            )
        return self.objective.metrics(totals)

    def _draw(self) -> list[Step]:
        """As many steps in every process; the last ones may have no weight."""
        train, world = self.train, self.world
        limit = min(train.validation_sequences, self.sequences.count)
        size = self.rows
        steps = []
        for start in range(0, limit, size * world.size):
            stop = min(start + size * world.size, limit)
            places = list(range(start, stop))[world.rank :: world.size]
            rows = self.sequences.read(start, stop).take(slice(world.rank, None, world.size))
            if not places:  # the networks must run in all processes at once
                rows, places = self.sequences.read(start, start + 1), [start]
                rows.lengths[:] = 0
            steps.append(
                make_step(self.objective, rows, places, 0, train.seed, size, randomness.VALIDATION)
            )
        return steps
