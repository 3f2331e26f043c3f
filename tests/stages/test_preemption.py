"""Real signals to real processes in every phase of training: saved, exit code, and exactly the same end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cola_cli.families import PRIOR
from cola_cli.machine import interruption
from cola_cli.stages.train import train
from cola_cli.training import checkpoints
from tests.conftest import CPU, content
from tests.stages.conftest import assignments, prior_settings
from tests.stages.killing import assert_same_manifest, assert_same_metrics

# Sends itself a signal when a function is called for the so-many-th time.
PROGRAM = """
import os, signal, sys
import {module} as module
original = module.{owner}{name}
calls = 0
def interrupted(*arguments, **options):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.{signal})
    return original(*arguments, **options)
module.{owner}{name} = interrupted
from cola_cli.cli.main import main; main()
"""
TRAIN_PRIOR = ["train", "prior", "--device", "cpu"]
COMPILING = ("torch._inductor.graph", "GraphLowering.", "run", 1)
# phase, what is called then and how often before, the exit code, the step that is saved
PHASES = [
    ("start-up", ("cola_cli.machine.threads", "", "prepare_torch", 1), 143, 0),
    ("training", ("cola_cli.training.loop", "Training.", "_update", 3), 130, 3),
    (
        "resuming",
        ("torch.distributed.checkpoint", "HuggingFaceStorageReader.", "read_data", 1),
        143,
        3,
    ),
    ("validation", ("cola_cli.training.validation", "Validation.", "_draw", 1), 143, 8),
    ("saving", ("cola_cli.training.checkpoints", "", "write", 2), 130, 10),
    ("writing the networks", ("cola_cli.weights.artifact", "", "write_network", 1), 143, 24),
]


def saved_step(artifact: Path) -> int:
    """The step of the newest checkpoint; 0: none."""
    found = checkpoints.latest(artifact / "checkpoints")
    return found.step if found else 0


def interrupted(command: list[str], place: tuple[str, str, str, int], code: int) -> str:
    """What `cola` says when it is interrupted at that place; its exit code must be `code`."""
    module, owner, function, call = place
    name = signal.Signals(code - 128).name
    program = PROGRAM.format(module=module, owner=owner, name=function, call=call, signal=name)
    run = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert run.returncode == code, (place, run.stderr)
    return run.stderr


@pytest.mark.slow
def test_a_signal_in_any_phase_saves_and_the_runs_together_equal_one(
    made: Path, tmp_path: Path
) -> None:
    settings = prior_settings(ema_decay=0.9)
    train(PRIOR, made / "latents", tmp_path / "quiet", settings, CPU)
    command = ["train", "prior", str(made / "latents"), "-o", str(tmp_path / "stopped")]
    command += ["--device", "cpu", *assignments(settings)]
    for phase, place, code, step in PHASES:
        name = "SIGTERM" if code == 143 else "SIGINT"
        module, owner, function, call = place
        program = PROGRAM.format(module=module, owner=owner, name=function, call=call, signal=name)
        run = subprocess.run(
            [sys.executable, "-c", program, *command], capture_output=True, text=True
        )
        assert run.returncode == code, (phase, run.stderr)
        assert ("progress is saved" in run.stderr) == (step > 0), phase
        # "within one step": the thread that writes may be heard a step later
        assert saved_step(tmp_path / "stopped") in (step, step + 1), phase
    train(PRIOR, made / "latents", tmp_path / "stopped", settings, CPU)
    assert content(tmp_path / "stopped") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "stopped", tmp_path / "quiet")
    assert_same_manifest(tmp_path / "stopped", tmp_path / "quiet")


@pytest.mark.slow
def test_a_signal_stops_the_compiler_at_once(made: Path, tmp_path: Path) -> None:
    settings = prior_settings(steps=2, compile=True)
    command = ["train", "prior", str(made / "latents"), "-o", str(tmp_path / "compiled")]
    command += ["--device", "cpu", *assignments(settings)]
    errors = interrupted(command, COMPILING, 143)
    assert "interrupted" in errors
    assert "progress is saved" not in errors  # there is none yet
    assert saved_step(tmp_path / "compiled") == 0
    assert (tmp_path / "compiled" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_of_terminals_and_batch_systems_save(
    made: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [*TRAIN_PRIOR, "-o", str(tmp_path / "stopped"), *assignments(prior_settings())]
    command.insert(2, str(made / "latents"))
    update = ("cola_cli.training.loop", "Training.", "_update", 3)
    assert "progress is saved" in interrupted(command, update, 128 + number)
    assert saved_step(tmp_path / "stopped") in (3, 4)


def test_a_hangup_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    handled = {}
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", handled.__setitem__)
    monkeypatch.setattr(interruption, "_commands", 0)
    interruption.install()
    assert handled.keys() == {*interruption.SIGNALS} - {signal.SIGHUP}
