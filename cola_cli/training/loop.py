"""The training loop, one for every objective: steps, bad steps, checkpoints, interruption."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cola_cli.artifacts.artifact import METRICS
from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS
from cola_cli.corpus.sequences import Sequences, Shuffled
from cola_cli.errors import Diverged, Interrupted, UsageError
from cola_cli.machine import interruption
from cola_cli.machine.processes import World
from cola_cli.reporting import Reporter
from cola_cli.settings.training import Optimizer, Train
from cola_cli.training import checkpoints, optimizers, schedule
from cola_cli.training.average import MovingAverage
from cola_cli.training.checkpoints import Progress
from cola_cli.training.metrics import VALIDATION, Metrics, Watch, unwatched
from cola_cli.training.monitor import Monitor
from cola_cli.training.objectives.objective import Batch, Objective
from cola_cli.training.parallelize import mark_dynamic, recompute_blocks, wrap
from cola_cli.training.profiling import profiled
from cola_cli.training.reader import Step, read_steps, scaled, to_device
from cola_cli.training.shares import Shares, Workers
from cola_cli.training.validation import Validation

NORM_MEMORY = 0.98  # decay of the average gradient norm, against which a spike is judged
NORM_STEPS = 20  # steps before a spike can be told


class Training:
    """One run: an objective trained on sequences, writing into the directory of an artifact.

    flops: floating-point operations that a step needs, in all processes together. shares: how this process
    cuts its batches. base: step and place of a checkpoint of a shorter run, to begin from while this one has
    no checkpoint. watch: is told of all metrics. profile: file for a trace of some steps.
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
        shares: Shares,
        base: tuple[int, Path] | None = None,
        watch: Watch = unwatched,
        profile: Path | None = None,
    ) -> None:
        if world.size > 1 and train.batch_size % world.size:
            raise UsageError(
                f"train.batch_size {train.batch_size} is not a multiple of {world.size} processes.",
                "Choose another batch size or number of processes.",
            )
        self.objective = objective
        self.train = train
        self.optim = optim
        self.world = world
        self.reporter = reporter
        self.shuffled = Shuffled(sequences, train.data_seed, train.shuffle_window)
        self.metrics = Metrics(directory / METRICS, watch)
        self.profile = profile
        self.progress = Progress()
        self.directory = directory
        self._base = base
        self._kept_step = schedule.kept_step(optim, train.steps) if train.keep_state else 0
        self.saver = checkpoints.Saver(
            directory / CHECKPOINTS, train.keep_last, train.keep_every, self._kept_step, world
        )
        self._saved_state: dict[str, Any] = {}  # of the newest checkpoint
        self.bf16 = train.precision == "bf16" or (
            train.precision == "auto" and world.device.type == "cuda"
        )
        if train.activation_checkpointing:
            recompute_blocks(objective)
        self.sharded = world.size > 1 and train.parallel == "fsdp"
        self.module = wrap(objective, train, world)
        self.workers = Workers(shares.at_once(train, objective.length))
        self.optimizers = optimizers.build(objective.parts(), optim, self.workers.each)
        self.parameters: list[Tensor] = [p for p in objective.parameters() if p.requires_grad]
        self._names: dict[Tensor, str] = {p: n for n, p in objective.named_parameters()}
        self.average = MovingAverage(objective, self.parameters, train.ema_decay)
        self.rows = shares.rows(train, world.size, objective.length)
        self.validation = Validation(objective, validation, train, world, self.rows, self.workers)
        self.monitor = Monitor(self.metrics, train, optim, world, reporter, objective.length, flops)

    # --- the run ---

    def run(self) -> None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises Interrupted after a signal, with everything saved; Diverged at a bad step, or when all were.
        """
        self._restore()
        with interruption.deferred(), self.workers:
            self._stop_if_asked()
            if not self.progress.validated:
                self._validate()
                self._save()
            if self.progress.step < self.train.steps:
                width = max(min(p.shape) for p in self.objective.parameters() if p.ndim == 2)
                self.monitor.measure_machine(width, self.bf16, self.rows, self.workers)
                self._train()
            self._saved()
        if self.progress.skipped >= self.train.steps:
            raise Diverged(
                f"all {self.train.steps} steps were skipped as bad: nothing was trained.",
                "Lower optim.lr or raise train.spike_factor, and run again with --overwrite.",
            )
        if self.world.leads:
            self.metrics.flush()

    def _train(self) -> None:
        train, progress = self.train, self.progress
        steps = read_steps(
            self.objective, self.shuffled, self.world, train, self.rows, progress.step
        )
        self.reporter.start("train", train.steps, "steps", progress.step)
        begin = time.perf_counter()
        waited = 0.0
        try:
            for step in self._traced(steps):
                waited += time.perf_counter() - begin
                self._update(step)
                progress.step = step.number + 1
                now = time.perf_counter()
                self.monitor.log(progress, now - begin, waited)
                last = progress.step == train.steps
                if last or progress.step % train.validate_every == 0:
                    progress.validated = False
                    self._validate()
                due = progress.step % train.checkpoint_every == 0
                if last or due or progress.step == self._kept_step:
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

    def _traced(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The steps, some of them in a trace if that is wanted."""
        with profiled(self.profile if self.world.leads else None) as end_step:
            for step in steps:
                yield step
                end_step()

    def _update(self, step: Step) -> None:
        """One optimiser step over all micro-batches of all processes."""
        progress = self.progress
        rate = schedule.learning_rate(step.number, self.optim, self.train.steps)
        optimizers.set_learning_rate(self.optimizers, rate)
        terms = self._shared_out(step) if self.workers.count else self._one_by_one(step)
        norm = self._clip()
        if self.world.size > 1:
            for name in sorted(terms):  # each was scaled by the number of processes
                terms[name] = self.world.total_tensor(terms[name] / self.world.size)
        metrics = {name: value.item() for name, value in terms.items()} | {"gradient_norm": norm}
        if self._is_bad(metrics["loss"], norm):
            self._bad_step(step, metrics["loss"], norm)
        else:
            for optimizer in self.optimizers:
                optimizer.step()
            kept = NORM_MEMORY if progress.norm_average else 0.0
            progress.norm_average = kept * progress.norm_average + (1 - kept) * norm
            self.average.update()
            for name, value in metrics.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.summed += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _one_by_one(self, step: Step) -> dict[str, Tensor]:
        """The terms of the loss; adds the gradients of the micro-batches, one after the other."""
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
        return terms

    def _shared_out(self, step: Step) -> dict[str, Tensor]:
        """The same, computed side by side and added in the order of the batches."""
        parameters: Any = self.parameters

        def compute(batch: Batch) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
            with self._autocast(cached=False):  # the threads have one cache
                sums = self.module(scaled(batch, step.counts, 1))
            gradients = torch.autograd.grad(sums["loss"], parameters, allow_unused=True)
            return {name: value.detach() for name, value in sums.items()}, gradients

        terms: dict[str, Tensor] = {}
        for sums, gradients in self.workers.each(compute, step.batches):
            for name, value in sums.items():
                terms[name] = terms.get(name, 0) + value
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is None:
                    continue
                if parameter.grad is None:  # a copy: two parameters may have one tensor as gradient
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)
                else:
                    parameter.grad.add_(gradient)
            del gradients, gradient  # before those of the next share are made
        return terms

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
            raise Diverged(
                f"{problem}.",
                "Look at those sequences with `cola inspect`, lower optim.lr, or skip such steps"
                " with --set train.on_bad_step=skip.",
            )
        if self.progress.skipped > self.train.skip_limit:
            raise Diverged(
                f"{problem}; {self.progress.skipped} steps were skipped so far.",
                "Lower optim.lr, or raise train.skip_limit.",
            )
        self.reporter.warn(f"{problem}; skipped")

    # --- validation ---

    def _validate(self) -> None:
        with self.average.in_place():
            sums = self.validation.sums(self._autocast, self._asked)
        self._stop_if_asked()  # not within: the averaged weights are in place there
        found = self.validation.metrics(sums, self.progress.step)
        self.metrics.add(
            self.progress.step, {VALIDATION + name: value for name, value in found.items()}
        )
        self.progress.validated = True
        shown = {name: f"{found[name]:.4g}" for name in ("loss", "accuracy") if name in found}
        self.reporter.note(
            f"step {self.progress.step}: validation "
            + ", ".join(f"{name} {value}" for name, value in shown.items())
        )

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
            raise Interrupted(number, saved=self.progress.step > 0)

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
            seen = {"metrics": self.metrics.digest(self.progress.step)}
            self.saver.write(self.progress.step, tensors, state | seen if leads else None)
        self._saved_state = state

    def _restore(self) -> None:
        found = checkpoints.latest(self.directory / CHECKPOINTS, self.world)
        if found is None and self._base is not None:
            step, place = self._base
            found = checkpoints.Checkpoint(place, step, self.world)
        if found is None:
            return
        digest = found.state.pop("metrics")
        self.progress = Progress(**found.state)
        self._saved_state = copy.deepcopy(found.state)
        step = found.step
        self.reporter.note(f"going on from step {step}")
        earlier = Metrics(found.path.parents[1] / METRICS)
        earlier.resume(step, digest)
        if step < self.train.steps:
            # the last step of a shorter run is logged and validated besides
            earlier.thin(
                step, step % self.train.log_every == 0, step % self.train.validate_every == 0
            )
        self.metrics.rows = earlier.rows
        moments = checkpoints.empty_optimizer_tensors(
            self.optimizers, self._names, found.names("optimizer")
        )
        found.load(self._tensors(moments))

    def _tensors(self, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """All that training changes, by its name in a checkpoint."""
        tensors = {f"model.{self._names[p]}": p.detach() for p in self.parameters}
        tensors |= {f"optimizer.{name}": moment for name, moment in moments.items()}
        for parameter, average in zip(self.parameters, self.average.values, strict=False):
            tensors[f"average.{self._names[parameter]}"] = average
        return tensors

    # --- devices ---

    def _autocast(self, cached: bool = True) -> torch.autocast:
        kind = self.world.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.bf16, cache_enabled=cached)

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
