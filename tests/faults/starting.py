"""Faults that need a `cola` started afresh: signals while it starts, and workers whose parent is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.cases import DONE, Case, Trial, Verdict
from tests.faults.processes import SIGNALS
from tests.faults.stages import FOLDER, Stages, differences

DELAYS = (0.03, 0.1, 0.3, 0.9)  # seconds after the start: Python, cola, torch, the stage itself
PATIENCE = 20.0  # seconds that workers may take to see that their parent has gone
TWO_WORKERS = {"part_bytes": 250, "workers": 2}


def start(arguments: list[str], log: Path) -> subprocess.Popen[str]:
    """Start `cola` as a program, in a session of its own; its errors go to `log`."""
    code = "from cola_cli.cli.main import main; main()"
    with log.with_suffix(".err").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            start_new_session=True,
        )


def signals(stages: Stages, stage: str) -> Iterator[Case]:
    """SIGTERM and SIGINT while Python, cola and torch are being loaded."""
    for delay in DELAYS:
        for name in SIGNALS:
            check = partial(_early, stages, stage, name, delay)
            yield Case(stage, "signals", f"{name} {delay} s after the start", check)


def _early(stages: Stages, stage: str, name: str, delay: float, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    process = start(trial.command(), trial.log)
    time.sleep(delay)
    number = SIGNALS[name]
    process.send_signal(number)
    code = process.wait()
    # before cola has begun, the signal itself ends Python: the same code to a shell
    if code == DONE:
        trial.compare()
    elif code not in (-number, 128 + number):
        trial.unclear(f"{name} gave exit code {code}: {trial.log.with_suffix('.err').read_text()}")
    return trial.finish()


def workers(stages: Stages, stage: str) -> Iterator[Case]:
    """SIGKILL of a run that has worker processes, once it has made some parts."""
    if stage == "tokenize":
        for parts in (1, 4, 8):
            check = partial(_orphaned, stages, stage, parts)
            yield Case(stage, "workers", f"killed once there are {parts} parts", check)


def _orphaned(stages: Stages, stage: str, parts: int, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    quiet = folder / FOLDER[stage]
    start(stages.command(stage, quiet, **TWO_WORKERS), trial.log).wait()
    arguments = trial.command(**TWO_WORKERS)
    process = start(arguments, trial.log)
    while len(list(trial.output.glob("parts/*.json"))) < parts and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    deadline = time.monotonic() + PATIENCE
    while (left := _session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        trial.lost(f"{len(left)} processes of the killed run live on without its lock")
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    trial.verdict.resumed += 1
    if code := start(arguments, trial.log).wait():
        said = trial.log.with_suffix(".err").read_text()
        trial.lost(f"the run after it failed: exit {code}: {said}")
        return trial.verdict
    different, count = differences(trial.output, quiet)
    trial.verdict.bytes += count
    if different:
        trial.lost("not the quiet run's: " + "; ".join(different))
    return trial.verdict


def _session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found
