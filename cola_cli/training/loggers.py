"""Loggers: metrics to an experiment tracker while a training goes on. They change nothing and stop nothing.

Another package brings a logger by an entry point of the group `cola.loggers`: a callable that takes the
directory of the artifact and the first step, and returns a Logger.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from cola_cli.artifacts.manifest import read_manifest
from cola_cli.errors import UsageError
from cola_cli.reporting import Reporter
from cola_cli.settings import nearest
from cola_cli.training.metrics import VALIDATION

GROUP = "cola.loggers"
PROJECT = "cola"  # of runs at trackers


class Logger(Protocol):
    """Where metrics go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics after `step` optimiser steps, by their names in metrics.parquet."""

    def close(self) -> None:
        """The training ends."""


MakeLogger = Callable[[Path, int], Logger]
Send = Callable[[dict[str, float], int], Any]  # of metrics and their step


class TensorBoard:
    """Event files in `tensorboard/NAME` beside the artifact NAME, where a resumed run goes on."""

    def __init__(self, artifact: Path, first: int) -> None:
        """first: step of the first metrics; what an interrupted run logged from there on is replaced."""
        from torch.utils.tensorboard import SummaryWriter

        place = artifact.parent / "tensorboard" / artifact.name
        _wait_for_a_later_second(place)
        self._writer = SummaryWriter(place, purge_step=first)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar each, training and validation apart."""
        for name, value in values.items():
            plain = name.removeprefix(VALIDATION)
            tag = f"{'training' if plain == name else 'validation'}/{plain}"
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Tracker(ABC):
    """A run that a tracker keeps; a training that goes on continues its run.

    The run is told by the artifact's place and fingerprint. Steps that it has already are not given again.
    """

    def __init__(self, artifact: Path, first: int) -> None:
        """first: not asked, since the tracker knows how far it came."""
        known = f"{artifact.resolve()} {read_manifest(artifact).fingerprint}"
        identity = hashlib.sha256(known.encode()).hexdigest()[:16]
        with redirect_stdout(io.StringIO()):  # both greet there
            self._send, self._reached, self._end = self.open(artifact, identity)

    @abstractmethod
    def open(self, artifact: Path, identity: str) -> tuple[Send, int, Callable[[], None]]:
        """What gives metrics to the run, new or continued, the last step that it has, and what ends it."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All at once, by their names."""
        if step > self._reached:
            self._send(dict(values), step)

    def close(self) -> None:
        """Wait until all is sent."""
        with redirect_stdout(io.StringIO()):
            self._end()


class Wandb(Tracker):
    """A run of the project `cola`, or $WANDB_PROJECT; its files are in `wandb/` beside the artifact."""

    def open(self, artifact: Path, identity: str) -> tuple[Send, int, Callable[[], None]]:
        """As wandb is configured, with WANDB_MODE=offline without a network."""
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=artifact.name,
            id=identity,
            dir=artifact.parent,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        return run.log, run.step - 1, wandb.finish


class Trackio(Tracker):
    """A run of the project `cola`, or $TRACKIO_PROJECT, on this machine; `trackio show` opens the page."""

    def open(self, artifact: Path, identity: str) -> tuple[Send, int, Callable[[], None]]:
        """trackio tells runs by their names."""
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        name = f"{artifact.name}-{identity[:8]}"
        reached = trackio.SQLiteStorage.get_max_step_for_run(project, name)
        run = trackio.init(project=project, name=name, resume="allow", embed=False)
        return run.log, -1 if reached is None else reached, trackio.finish


class Mlflow(Tracker):
    """A run of the experiment `cola`, or $MLFLOW_EXPERIMENT_NAME, in `mlflow.db` beside the artifact.

    With $MLFLOW_TRACKING_URI it is where that says.
    """

    def open(self, artifact: Path, identity: str) -> tuple[Send, int, Callable[[], None]]:
        """The metrics of a step are one request, so a run has all of a step or none."""
        os.environ.setdefault(
            "MLFLOW_LOGGING_LEVEL", "WARNING"
        )  # else it tells how it makes tables
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        beside = f"sqlite:///{artifact.parent.resolve() / 'mlflow.db'}"
        client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", beside))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if known is None else known.experiment_id
        found = client.search_runs([experiment], f"tags.cola = '{identity}'", max_results=1)
        run = (
            found[0]
            if found
            else client.create_run(experiment, tags={"cola": identity}, run_name=artifact.name)
        )
        number = run.info.run_id
        client.update_run(number, "RUNNING")
        steps = (m.step for key in run.data.metrics for m in client.get_metric_history(number, key))

        def send(values: dict[str, float], step: int) -> None:
            now = int(time.time() * 1000)
            client.log_batch(number, [Metric(key, values[key], now, step) for key in values])

        return send, max(steps, default=-1), lambda: client.set_terminated(number)


def _wait_for_a_later_second(place: Path) -> None:
    """Return when no event file of `place` bears the present second.

    TensorBoard reads event files in the order of their names, which begin with the second of their
    making; within one second the number of the process would decide.
    """
    while list(place.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)


class Loggers:
    """Several at once. One that fails is told of and left out; the training goes on."""

    def __init__(
        self, makers: Mapping[str, MakeLogger], artifact: Path, reporter: Reporter
    ) -> None:
        """makers: by name, of `find_loggers`."""
        self._artifact, self._reporter, self._makers = artifact, reporter, dict(makers)
        self._running: dict[str, Logger] = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Give metrics to all."""
        for name, make in list(self._makers.items()):
            try:
                if name not in self._running:
                    self._running[name] = make(self._artifact, step)
                self._running[name].log(step, values)
            except Exception as error:
                del self._makers[name]
                said = " ".join(str(error).split())
                self._reporter.warn(f"the logger {name} failed and is left out ({said})")

    def close(self) -> None:
        """End all that still run."""
        for name in self._makers.keys() & self._running.keys():
            try:
                self._running[name].close()
            except Exception as error:
                self._reporter.warn(f"the logger {name} failed at its end ({error})")


def find_loggers(given: Sequence[str]) -> dict[str, MakeLogger]:
    """The loggers of texts such as `tensorboard,other`, by name.

    Raises UsageError for an unknown name, or for one whose package is not installed.
    """
    return {name: _maker(name) for text in given for name in text.rstrip(",").split(",")}


def _maker(name: str) -> MakeLogger:
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name in found:
        make: MakeLogger = found[name].load()
        return make
    if name not in OWN:
        raise UsageError(f"there is no logger {name!r}.", nearest(name, [*OWN, *found]))
    if importlib.util.find_spec(name) is None:
        extra = "log" if name == "tensorboard" else name
        raise UsageError(
            f"the logger {name} needs the package of its name.",
            f"Install it: pip install 'cola-cli[{extra}]'",
        )
    return OWN[name]


OWN: dict[str, MakeLogger] = {
    "tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow,
}  # fmt: skip
