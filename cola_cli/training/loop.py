"""The training loop: one for every objective. Steps, validation, checkpoints, interruption, bad steps."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cola_cli.artifacts.artifact import METRICS
from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS
from cola_cli.corpus.sequences import Sequences, Shuffled
from cola_cli.errors import ColaError, Interrupted, UsageError
from cola_cli.machine import interruption, speed
from cola_cli.machine.processes import World
from cola_cli.machine.threads import peak_memory
from cola_cli.reporting import Reporter
from cola_cli.settings.training import Optimizer, Train
from cola_cli.training import checkpoints, optimizers, randomness, schedule
from cola_cli.training.metrics import VALIDATION, Metrics
from cola_cli.training.objectives.objective import Objective
from cola_cli.training.parallelize import mark_dynamic, recompute_blocks, wrap
from cola_cli.training.reader import Step, Steps, make_step, scaled, to_device

NORM_MEMORY = 0.98  # of the running average of the gradient norm, against which a spike is judged
NORM_STEPS = 20  # steps before a spike can be told
FLUSH_SECONDS = 20.0


@dataclass
class Progress:
    """What a checkpoint holds beside tensors. Floats survive JSON exactly."""

    step: int = 0  # updates done; also the reader's position
    validated: bool = True  # whether the validation due at `step` is done
    norm_average: float = 0.0
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # since the last row of metrics
    summed: int = 0


class Training:
    """One run: an objective trained on sequences, writing into the directory of an artifact.

    flops: floating-point operations that a step needs, in all processes together.
    """

    def __init__(
        self,
        objective: Objective,
        train: Train,
        optim: Optimizer,
        sequences: Sequences,
        validation: Sequences,
        directory: Path,
        world: World,
        reporter: Reporter,
        flops: float,
    ) -> None:
        if world.size > 1 and train.batch_size % world.size:
            raise UsageError(
                f"train.batch_size {train.batch_size} is no multiple of {world.size} processes.",
                "Choose another batch size or number of processes.",
            )
        self.objective = objective
        self.train = train
        self.optim = optim
        self.world = world
        self.reporter = reporter
        self.flops = flops
        self.shuffled = Shuffled(sequences, train.data_seed, train.shuffle_window)
        self.validation = validation
        self.directory = directory
        self.metrics = Metrics(directory / METRICS)
        self.progress = Progress()
        self.saver = checkpoints.Saver(
            directory / CHECKPOINTS, train.keep_last, train.keep_every, world
        )
        self._saved_state: dict[str, Any] = {}  # of the newest checkpoint
        self.bf16 = train.precision == "bf16" or (
            train.precision == "auto" and world.device.type == "cuda"
        )
        if train.activation_checkpointing:
            recompute_blocks(objective)
        self.sharded = world.size > 1 and train.parallel == "fsdp"
        self.module = wrap(objective, train, world)
        self.optimizers = optimizers.build(objective.parts(), optim)
        self.parameters: list[Tensor] = [p for p in objective.parameters() if p.requires_grad]
        self._names: dict[Tensor, str] = {p: n for n, p in objective.named_parameters()}
        self._average = [p.detach().clone() for p in self.parameters] if train.ema_decay else []
        self._fixed_draws: list[Step] = []
        self._flushed = time.monotonic()

    # --- the run ---

    def run(self) -> None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises Interrupted after a signal, with everything saved; ColaError at a bad step.
        """
        self._restore()
        with interruption.deferred():
            self._stop_if_asked()
            if not self.progress.validated:
                self._validate()
                self._save()
            if self.progress.step < self.train.steps:
                self._rate = self._matrix_rate()
                self._train()
            self._saved()
        if self.world.leads:
            self.metrics.flush()

    def _train(self) -> None:
        train, progress = self.train, self.progress
        steps = Steps(
            self.objective,
            self.shuffled,
            self.world,
            progress.step,
            train.steps,
            train.batch_size,
            train.micro_batch,
            train.seed,
        )
        self.reporter.start("train", train.steps, "steps", progress.step)
        begin = time.perf_counter()
        waited = 0.0
        try:
            for step in steps:
                waited += time.perf_counter() - begin
                self._update(step)
                progress.step = step.number + 1
                now = time.perf_counter()
                self._log(now - begin, waited)
                last = progress.step == train.steps
                if last or progress.step % train.validate_every == 0:
                    progress.validated = False
                    self._validate()
                if last or progress.step % train.checkpoint_every == 0:
                    self._save()
                self._stop_if_asked()
                begin, waited = time.perf_counter(), 0.0
        except Interrupted:
            if self.world.size == 1:  # else it was raised before anything was worth saving
                self._save()
                self._saved()
            raise
        finally:
            steps.close()
            self.reporter.stop()

    def _update(self, step: Step) -> None:
        """One optimiser step over all micro-batches of all processes."""
        progress = self.progress
        rate = schedule.learning_rate(step.number, self.optim, self.train.steps)
        optimizers.set_learning_rate(self.optimizers, rate)
        counts = self.world.total(step.counts)
        terms: dict[str, Tensor] = {}
        for index, batch in enumerate(step.batches):
            batch = to_device(scaled(batch, counts, self.world.size), self.world.device)
            if self.train.compile:
                mark_dynamic(batch)
            with self._compiling(step), self._gathering(index + 1 == len(step.batches)):
                with self._autocast():
                    sums = self.module(batch)
                sums["loss"].backward()
            for name, value in sums.items():
                terms[name] = terms.get(name, 0) + value.detach()
        norm = self._clip()
        if self.world.size > 1:
            for name in sorted(terms):  # each was scaled by the number of processes
                terms[name] = self.world.total_tensor(terms[name] / self.world.size)
        figures = {name: value.item() for name, value in terms.items()} | {"gradient_norm": norm}
        if self._is_bad(figures["loss"], norm):
            self._bad_step(step, figures["loss"], norm)
        else:
            for optimizer in self.optimizers:
                optimizer.step()
            kept = NORM_MEMORY if progress.norm_average else 0.0
            progress.norm_average = kept * progress.norm_average + (1 - kept) * norm
            if self._average:
                torch._foreach_lerp_(self._average, self.parameters, 1 - self.train.ema_decay)
            for name, value in figures.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.summed += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _clip(self) -> float:
        limit = self.optim.clip or math.inf
        norm: Any = nn.utils.clip_grad_norm_(self.parameters, limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    # --- bad steps ---

    def _is_bad(self, loss: float, norm: float) -> bool:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return True
        progress, factor = self.progress, self.train.spike_factor
        return 0 < factor * progress.norm_average < norm and progress.step >= NORM_STEPS

    def _bad_step(self, step: Step, loss: float, norm: float) -> None:
        self.progress.skipped += 1
        rows = ", ".join(map(str, step.rows[:64]))
        problem = (
            f"step {step.number + 1}: loss {loss:.6g}, gradient norm {norm:.6g}"
            f" (average {self.progress.norm_average:.4g}), on training sequences {rows}"
        )
        if self.train.on_bad_step == "stop":
            raise ColaError(
                f"{problem}.",
                "Look at those sequences with `cola inspect`, lower optim.lr, or skip such steps"
                " with --set train.on_bad_step=skip.",
            )
        if self.progress.skipped > self.train.skip_limit:
            raise ColaError(
                f"{problem}; {self.progress.skipped} steps were skipped so far.",
                "Lower optim.lr, or raise train.skip_limit.",
            )
        self.reporter.warn(f"{problem}; skipped")

    # --- validation, metrics ---

    def _validate(self) -> None:
        """Figures on the first validation sequences, with the same draws every time."""
        world = self.world
        if not self._fixed_draws:
            self._fixed_draws = self._draw_validation()
        counts: dict[str, float] = {}
        for step in self._fixed_draws:
            for name, value in step.counts.items():
                counts[name] = counts.get(name, 0.0) + value
        counts = world.total(counts)
        totals: dict[str, Tensor] = {}
        self.objective.eval()
        with self._averaged(), torch.no_grad(), self._autocast():
            for step in self._fixed_draws:
                for batch in step.batches:
                    sums = self.objective(
                        to_device(scaled(batch, counts, 1), world.device), evaluate=True
                    )
                    for name, value in sums.items():
                        totals[name] = totals.get(name, 0) + value.float()
                if self._asked():
                    break
        self.objective.train()
        self._stop_if_asked()  # not within: the averaged weights are in place there
        totals = {name: world.total_tensor(totals[name]).cpu() for name in sorted(totals)}
        figures = self.objective.figures(totals)
        self.metrics.add(
            self.progress.step, {VALIDATION + name: value for name, value in figures.items()}
        )
        self.progress.validated = True
        shown = {name: f"{figures[name]:.4g}" for name in ("loss", "accuracy") if name in figures}
        self.reporter.note(
            f"step {self.progress.step}: validation "
            + ", ".join(f"{name} {value}" for name, value in shown.items())
        )

    def _draw_validation(self) -> list[Step]:
        """The share of this process; every process has as many steps, the last ones perhaps of no weight."""
        train, world = self.train, self.world
        limit = min(train.validation_sequences, self.validation.count)
        size = train.micro_batch or -(-train.batch_size // world.size)
        made = []
        for start in range(0, limit, size * world.size):
            places = list(range(start, min(start + size * world.size, limit)))[
                world.rank :: world.size
            ]
            rows = self.validation.read(start, min(start + size * world.size, limit))
            rows = rows.take(slice(world.rank, None, world.size))
            if not places:  # the networks must run in all processes at once
                rows, places = self.validation.read(start, start + 1), [start]
                rows.lengths[:] = 0
            made.append(
                make_step(self.objective, rows, places, 0, train.seed, size, randomness.VALIDATION)
            )
        return made

    def _log(self, seconds: float, waited: float) -> None:
        train, progress = self.train, self.progress
        tokens = train.batch_size * self.objective.length
        speed = tokens / seconds
        use = self.flops / seconds / self._rate / self.world.size
        memory = self._memory()
        shown = {"tokens_s": f"{speed:.3g}", "use": f"{use:.0%}", "memory": f"{memory / 1e9:.1f}GB"}
        if progress.summed:
            shown = {"loss": f"{progress.sums['loss'] / progress.summed:.4f}"} | shown
        self.reporter.advance(1, **shown)
        if progress.step % train.log_every and progress.step != train.steps:
            return
        values = {name: value / progress.summed for name, value in progress.sums.items()}
        rate = schedule.learning_rate(progress.step - 1, self.optim, train.steps)
        values |= {
            "learning_rate": rate,
            "tokens": float(progress.step * tokens),
            "flops": progress.step * self.flops,
            "skipped": float(progress.skipped),
            "seconds": seconds,
            "tokens_per_second": speed,
            "flops_use": use,
            "reader_share": waited / seconds,
            "memory_bytes": memory,
        }
        self.metrics.add(progress.step, values)
        progress.sums, progress.summed = {}, 0
        if self.world.leads and time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.metrics.flush()
            self._flushed = time.monotonic()

    def _matrix_rate(self) -> float:
        """What this machine does in plain matrix products of the model's width, operations a second."""
        width = max(min(p.shape) for p in self.parameters if p.ndim == 2)
        rows = min(8192, self.objective.length * (self.train.micro_batch or self.train.batch_size))
        rate = speed.matrix_rate(str(self.world.device), self.bf16, width, rows)
        self.reporter.note(f"matrix products run at {rate / 1e9:,.0f} GFLOP/s here")
        return rate

    def _memory(self) -> float:
        if self.world.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.world.device))
        return peak_memory()

    # --- checkpoints, interruption ---

    def _asked(self) -> int:
        """The number of the signal that any process received, or 0; on the way, commits what is written."""
        asked = interruption.requested() or 0
        asked, writing = self.world.largest(asked, int(self.saver.writing))
        if not writing and self.world.leads:
            self.saver.commit()
        return asked

    def _stop_if_asked(self) -> None:
        if number := self._asked():
            self._save()
            self._saved()
            raise Interrupted(number)

    def _saved(self) -> None:
        """Return once the last checkpoint is committed."""
        self.saver.wait()
        self.world.wait()
        if self.world.leads:
            self.saver.commit()
            self.saver.wait()
        self.world.wait()

    def _save(self) -> None:
        state = copy.deepcopy(vars(self.progress))
        if self.progress.step == 0 or state == self._saved_state:
            return
        self._saved()
        if self.world.leads:
            self.metrics.flush()
            self.saver.begin(self.progress.step)
        self.world.wait()
        leads = self.world.leads
        if leads or self.sharded:
            moments = checkpoints.optimizer_tensors(self.optimizers, self._names)
            tensors = checkpoints.snapshot(self._tensors(moments))
            figures = {"metrics": self.metrics.digest(self.progress.step)}
            self.saver.write(self.progress.step, tensors, state | figures if leads else None)
        self._saved_state = state

    def _restore(self) -> None:
        found = checkpoints.latest(self.directory / CHECKPOINTS, self.world)
        if found is None:
            return
        digest = found.state.pop("metrics")
        self.progress = Progress(**found.state)
        self._saved_state = copy.deepcopy(found.state)
        self.reporter.note(f"going on from step {self.progress.step}")
        self.metrics.resume(self.progress.step, digest)
        moments = checkpoints.empty_optimizer_tensors(
            self.optimizers, self._names, found.names("optimizer")
        )
        found.load(self._tensors(moments))

    def _tensors(self, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """All that training changes, by its name in a checkpoint."""
        tensors = {f"model.{n}": p.detach() for n, p in self.objective.named_parameters()}
        tensors |= {f"optimizer.{name}": moment for name, moment in moments.items()}
        for parameter, average in zip(self.parameters, self._average, strict=False):
            tensors[f"average.{self._names[parameter]}"] = average
        return tensors

    def averaged(self) -> None:
        """Replace the weights by their running average, if there is one, for good."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self._average, strict=False):
                parameter.copy_(average)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        if not self._average:
            yield
            return
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self.averaged()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, kept, strict=True):
                    parameter.copy_(value)

    # --- devices ---

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16)

    def _compiling(self, step: Step) -> contextlib.AbstractContextManager[None]:
        """Compiling takes minutes: a signal stops it at once, as weights change only after the gradients.

        With several processes only in the first step, before which there is nothing new to save.
        """
        first = self._saved_state.get("step", 0) == step.number
        if self.train.compile and (first or self.world.size == 1):
            return interruption.immediate()
        return contextlib.nullcontext()

    def _gathering(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged at the last micro-batch only."""
        if last or not hasattr(self.module, "no_sync"):
            return contextlib.nullcontext()
        no_sync: Any = self.module.no_sync
        return no_sync()
