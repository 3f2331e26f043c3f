"""Loggers see what metrics.parquet holds, once, whatever happens to the run; they stop nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cola_cli.artifacts.manifest import read_manifest
from cola_cli.errors import UsageError
from cola_cli.reporting import Silent
from cola_cli.training.loggers import Loggers, TensorBoard, find_loggers
from cola_cli.training.metrics import Metrics
from tests.conftest import Run, cola_command

pytest.importorskip("tensorboard")
SIZES = ["--set", "model.dim=16", "--set", "model.heads=1", "--set", "model.ffn_dim=32"]
FEW = [
    "--set", "train.steps=8", "--set", "train.log_every=2", "--set", "train.validate_every=4",
    "--set", "train.checkpoint_every=3", "--device", "cpu", "--threads", "1",
]  # fmt: skip


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a directory: by name, steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def column(artifact: Path, name: str) -> list[tuple[int, float]]:
    metrics = Metrics(artifact / "metrics.parquet")
    metrics.read()
    rows = [(int(row["step"]), row[name]) for row in metrics.rows if name in row]
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in rows]  # float32 there


def test_a_run_that_was_interrupted_is_one_curve(made: Path, cola: Run, tmp_path: Path) -> None:
    command = ("train", "ar", made / "tokens", "-o", "ar", *SIZES, *FEW, "--log", "tensorboard")
    _kill_after(
        cola_command(*command), "step 4: validation", tmp_path
    )  # step 3 is saved, 4 is logged
    cola(*command)
    shown = scalars(tmp_path / "tensorboard/ar")
    assert shown["training/loss"] == column(tmp_path / "ar", "loss")
    assert shown["validation/loss"] == column(tmp_path / "ar", "validation_loss")
    cola("train", "ar", made / "tokens", "-o", "plain", *SIZES, *FEW)
    assert (
        read_manifest(tmp_path / "plain").fingerprint == read_manifest(tmp_path / "ar").fingerprint
    )
    cola("log", "plain", "--to", "tensorboard")
    assert scalars(tmp_path / "tensorboard/plain")["training/loss"] == column(
        tmp_path / "plain", "loss"
    )


def test_runs_of_one_second_are_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for process, step in ((99999, 1), (11111, 2)):  # the later one has the name that sorts first
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        logger = TensorBoard(tmp_path / "ar", step)
        logger.log(step, {"loss": float(step)})
        logger.close()
    assert scalars(tmp_path / "tensorboard/ar")["training/loss"] == [(1, 1.0), (2, 2.0)]


def test_a_run_that_was_interrupted_is_one_run_of_trackio(
    made: Path, tmp_path: Path, cola: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio")
    shown = (
        "import json, trackio; (run,) = trackio.Api().runs('cola');"
        "print(json.dumps(trackio.SQLiteStorage.get_logs('cola', run.name)))"
    )
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    command = ("train", "ar", made / "tokens", "-o", "ar", *SIZES, *FEW, "--log", "trackio")
    _kill_after(cola_command(*command), "step 4: validation", tmp_path)
    again = subprocess.run(cola_command(*command), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "trackio" not in again.stdout.lower()
    found = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True)
    rows = json.loads(found.stdout.splitlines()[-1])
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    # Trackio sends later, so what it has of the steps before the checkpoint may be lost
    assert losses == column(tmp_path / "ar", "loss")[-len(losses) :]
    assert len(losses) >= 3


def test_a_run_that_was_interrupted_is_one_run_of_wandb(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = cola_command(
        "train", "ar", made / "tokens", "-o", "ar", *SIZES, *FEW, "--log", "wandb", "--json"
    )
    _kill_after(command, "step 4: validation", tmp_path)
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(again.stdout)
    assert "left out" not in again.stderr
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1  # the id of the run
    assert all([*folder.glob("run-*.wandb")] for folder in folders)


@pytest.mark.slow
def test_a_run_that_was_interrupted_is_one_run_of_mlflow(
    made: Path, tmp_path: Path, cola: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = ("train", "ar", made / "tokens", "-o", "ar", *SIZES, *FEW, "--log", "mlflow")
    _kill_after(cola_command(*command), "step 4: validation", tmp_path)
    again = subprocess.run(cola_command(*command), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "left out" not in again.stderr
    cola("log", "ar", "--to", "mlflow")  # has nothing to add

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cola")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("ar", "FINISHED")
    for name in ("loss", "validation_loss"):
        history = client.get_metric_history(run.info.run_id, name)
        found = sorted((metric.step, metric.value) for metric in history)
        assert found == column(tmp_path / "ar", name)


def _kill_after(command: list[str], said: str, folder: Path) -> None:
    """Run a command, and kill it when it has said something."""
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if said in line:
            process.kill()
    process.wait()


def test_a_logger_that_fails_is_left_out_and_said(tmp_path: Path) -> None:
    told: list[str] = []
    reporter = Silent()
    reporter.warn = told.append  # type: ignore[method-assign]
    (tmp_path / "tensorboard").write_text("a file where the directory belongs")
    loggers = Loggers(find_loggers(["tensorboard"]), tmp_path / "prior", reporter)
    loggers.log(1, {"loss": 1.0})
    loggers.log(2, {"loss": 1.0})
    loggers.close()
    assert len(told) == 1
    assert "tensorboard failed" in told[0]


def test_names_are_known_before_anything_is_trained() -> None:
    assert find_loggers(["tensorboard", "tensorboard,"]).keys() == {"tensorboard"}
    with pytest.raises(UsageError, match="no logger ''"):
        find_loggers([""])
    with pytest.raises(UsageError, match="no logger 'tensorbord'") as caught:
        find_loggers(["tensorbord"])
    assert caught.value.remedy == "Did you mean tensorboard?"


def test_a_profile_opens_as_a_trace(made: Path, cola: Run, tmp_path: Path) -> None:
    cola("train", "ar", made / "tokens", "-o", "ar", *SIZES, *FEW, "--profile", "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::mm" in names or "aten::addmm" in names
    command = ("train", "ar", made / "tokens", "-o", "again", *SIZES, *FEW, "--profile")
    (tmp_path / "kept.json").write_text("{}")
    wrong = {".": 2, "again/trace.json": 2, "ar/trace.json": 2, "kept.json": 3}
    for place, code in wrong.items():
        cola(*command, place, expect=code)
    assert not (tmp_path / "again").exists()
    assert (tmp_path / "kept.json").read_text() == "{}"
    cola(*command, "trace.json")  # another trace is replaced
