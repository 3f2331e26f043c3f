"""The log of a run: the progress bar, and the rows of training metrics with speed and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from cola_cli.machine import speed
from cola_cli.machine.processes import World
from cola_cli.machine.threads import peak_memory
from cola_cli.reporting import Reporter
from cola_cli.settings.training import Optimizer, Train
from cola_cli.training import schedule
from cola_cli.training.checkpoints import Progress
from cola_cli.training.metrics import Metrics
from cola_cli.training.shares import Workers

FLUSH_SECONDS = 20.0


@dataclass
class Monitor:
    """Logs the steps of one run.

    length: tokens a sequence; flops: operations a step, in all processes together; rate: operations a second
    that a process does in plain matrix products.
    """

    metrics: Metrics
    train: Train
    optim: Optimizer
    world: World
    reporter: Reporter
    length: int
    flops: float
    rate: float = 1.0
    flushed: float = field(default_factory=time.monotonic)

    def measure_machine(self, width: int, bf16: bool, rows: int, workers: Workers) -> None:
        """Time plain matrix products of the model's width, the yardstick of `flops_use`, on all workers.

        rows: sequences that are computed together.
        """
        device, tokens = str(self.world.device), min(8192, self.length * rows)

        def rate(worker: int) -> float:
            return speed.matrix_rate(device, bf16, width, tokens)

        self.rate = sum(workers.each(rate, range(workers.count or 1)))
        self.reporter.note(f"matrix products run at {self.rate / 1e9:,.0f} GFLOP/s here")

    def log(self, progress: Progress, seconds: float, waited: float) -> None:
        """Log the step just done, which took `seconds`, of which `waited` for its data."""
        train = self.train
        tokens = train.batch_size * self.length
        tokens_per_second = tokens / seconds
        use = self.flops / seconds / self.rate / self.world.size
        memory = self._memory()
        shown: dict[str, float | str] = {
            "tokens/s": tokens_per_second,
            "use": f"{use:.0%}",
            "memory": f"{memory / 1e9:.1f}GB",
        }
        if progress.summed:
            shown = {"loss": f"{progress.sums['loss'] / progress.summed:.4f}", **shown}
        self.reporter.advance(1, **shown)
        if progress.step % train.log_every and progress.step != train.steps:
            return
        values = {name: value / progress.summed for name, value in progress.sums.items()}
        values |= {
            "learning_rate": schedule.learning_rate(progress.step - 1, self.optim, train.steps),
            "tokens": float(progress.step * tokens),
            "flops": progress.step * self.flops,
            "skipped": float(progress.skipped),
            "seconds": seconds,
            "tokens_per_second": tokens_per_second,
            "flops_use": use,
            "reader_share": waited / seconds,
            "memory_bytes": memory,
        }
        self.metrics.add(progress.step, values)
        if progress.step % train.log_every == 0:  # a longer run goes on summing after the last step
            progress.sums, progress.summed = {}, 0
        if self.world.leads and time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.metrics.flush()
            self.flushed = time.monotonic()

    def _memory(self) -> float:
        if self.world.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.world.device))
        return peak_memory()
