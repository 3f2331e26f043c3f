"""Shared by all tests: the real `cola`, in this process and in others."""

from __future__ import annotations

import io
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest

from cola_cli.artifacts.files import sha256_file
from cola_cli.machine import interruption
from cola_cli.machine.threads import prepare_torch
from cola_cli.stages import run

# Tests compare the bytes of networks trained in this process and in others: the same threads and the same
# rounding everywhere, decided before anything imports torch. One thread, as tests run beside one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
prepare_torch()

# No test cuts this process from power, and to wait for the disk is most of the time of what writes small
# files. What is synced, and when, is watched: tests/artifacts/test_promises.py, tests/faults.
os.fsync = lambda descriptor: None

ENTRY = "from cola_cli.cli.main import main; main()"

# Machines differ, and are shared: no test is about time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

CPU = run.Run(device="cpu")  # how tests run a stage in this process

Run = Callable[..., subprocess.CompletedProcess[str]]


def cola_command(*arguments: object) -> list[str]:
    """The command line of `cola` in this interpreter."""
    return [sys.executable, "-c", ENTRY, *map(str, arguments)]


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command that runs in this process leaves signals ignored, which children would inherit."""
    before = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def cola(tmp_path: Path) -> Run:
    """Run the real command; `expect` is its exit code (None: any).

    It runs in this process, where torch is there already: to load it takes longer than most commands. With
    other options of `subprocess.run` than `input`, such as `env`, it runs in a process of its own.
    """

    def run(
        *arguments: object, expect: int | None = 0, cwd: Path = tmp_path, **options: object
    ) -> subprocess.CompletedProcess[str]:
        if options.keys() <= {"input"}:
            result = run_here([*map(str, arguments)], cwd, **options)
        else:
            command = cola_command(*arguments)
            result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, **options)
        if expect is not None:
            assert result.returncode == expect, f"{arguments}\n{result.stdout}\n{result.stderr}"
        return result

    return run


def run_here(
    arguments: Sequence[str], cwd: Path, input: str = "", main: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command in this process; what it changes of it is put back. main: instead of that of `cola`."""
    import torch

    if main is None:
        from cola_cli.cli.main import main

    threads, variables = torch.get_num_threads(), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile("w+") as given:
        given.write(input)
        given.seek(0)
        patch.chdir(cwd)
        streams = {"stdin": given, "stdout": out, "stderr": err}
        hooks = {name: getattr(sys, name) for name in ("unraisablehook", "excepthook")}
        for name, value in (streams | hooks | {"argv": ["cola", *arguments]}).items():
            patch.setattr(sys, name, value)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(variables)
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess(arguments, code, *said)


def drawn_seed() -> int:
    """The seed of what a test draws anew with every commit; anything else where there is no repository."""
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return int(head.stdout[:5] or secrets.token_hex(3), 16)


def content(directory: Path) -> dict[str, str]:
    """The digest of every file of an artifact but those that hold times, and the lock."""
    return {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "metrics.parquet", ".lock")
    }
