"""Run the real `cola` in a forked child, hold it at a write point, and break it there.

The parent has imported torch, Arrow and cola once, so that a child costs a fork and not four seconds.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import pkgutil
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import seccomp
from tests.faults.points import Change, Counter, Point, perform, resolve

LIMIT_SECONDS = 120.0
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
# A full disk stays full: what needs space fails from there on, removing does not.
NEEDS_SPACE = ("write", "open", "mkdir", "rename")
# What stages import on first use, in Arrow, torch and Typer too: a third of the time of a child.
LATE = (
    "numpy.ma",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pydantic.type_adapter",
    "pydoc",
    "torch.distributed.checkpoint",
    "zstandard",
)
FAILURE = signal.SIGRTMIN  # has a child raise an error wherever it is
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


@dataclass
class Outcome:
    """How a command ended; a negative code is the signal that ended it."""

    code: int
    stdout: str
    stderr: str
    process: int
    points: list[Point] = field(default_factory=list)
    reached: bool = False


def prepare() -> None:
    """Import everything a stage imports, with one thread; no thread may run when children are forked.

    All of cola is read at once, so that edits during a long campaign do not mix. What every child would
    import, build or measure alike, and no file depends on, is done here.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["COLA_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from cola_cli.machine.threads import prepare_torch

    prepare_torch(1)
    import torch
    import typer.main

    import cola_cli

    for module in pkgutil.walk_packages(cola_cli.__path__, "cola_cli."):
        if not module.name.endswith(("__main__", "evaluation.harness")):  # the last needs an extra
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    from cola_cli.cli.main import app
    from cola_cli.machine import speed

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)
    speed.matrix_rate = lambda *_: 1e9
    make = typer.main.get_command
    command = make(app)
    typer.main.get_command = lambda instance: command if instance is app else make(instance)
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    # Arrow's allocator has a thread of its own and stops it at a fork
    others = [name for name in threads[1:] if not name.startswith("jemalloc")]
    assert not others, f"threads that a fork would lose: {others}"
    gc.collect()
    gc.freeze()


class Running:
    """A `cola` process. With `watched`, it waits at every write point inside that folder."""

    def __init__(self, arguments: list[str], log: Path, watched: Path | None = None) -> None:
        self._log = log
        self._counter = Counter(watched) if watched else None
        self._held: tuple[seccomp.Call, Change] | None = None
        self._listener = -1
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        self.process = os.fork()
        if not self.process:
            ours.close()
            _be_cola(arguments, log, theirs if watched else None)
        theirs.close()
        self._ended = os.pidfd_open(self.process)
        if watched:
            message, descriptors, *_ = socket.recv_fds(ours, 200, 1)
            if not descriptors:
                os.waitpid(self.process, 0)
                raise seccomp.Unavailable(message.decode())
            self._listener = descriptors[0]
        ours.close()
        self._poll = select.poll()
        for descriptor in (self._ended, self._listener):
            if descriptor >= 0:
                self._poll.register(descriptor, select.POLLIN)

    def next(self, seconds: float = LIMIT_SECONDS) -> Point | None:
        """Let the held call happen; the next write point, where the process waits, or None at its end."""
        self.go_on()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(self._poll.poll(left * 1000))
            if ready.get(self._listener, 0) & select.POLLIN:
                call = seccomp.receive(self._listener)
                if call is None:
                    continue
                change = resolve(call)
                point = change and self._counter and self._counter.point(change)
                if change and point:
                    self._held = call, change
                    return point
                seccomp.go_on(self._listener, call)
            elif self._ended in ready:
                return None
        self.kill()
        raise TimeoutError(f"cola neither wrote nor ended within {seconds:.0f} s")

    @property
    def path(self) -> Path:
        """The file that the held call is about."""
        assert self._held
        return self._held[1].path

    def go_on(self) -> None:
        """Let the held call happen."""
        if self._held:
            seccomp.go_on(self._listener, self._held[0])
            self._held = None

    def fail(self, error: int) -> None:
        """Let the held call fail."""
        assert self._held
        seccomp.fail(self._listener, self._held[0], error)
        self._held = None

    def perform(self, share: float = 1.0) -> None:
        """Do what the held call would (of a write, the first `share`) while the process still waits."""
        assert self._held
        perform(*self._held, share)

    def signal(self, number: int) -> None:
        """Send a signal, if the process is still there."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._ended, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)

    def end(self) -> Outcome:
        """Wait for the end, letting everything happen."""
        while self.next() is not None:
            pass
        _, status = os.waitpid(self.process, 0)
        os.close(self._ended)
        if self._listener >= 0:
            os.close(self._listener)
        stdout, stderr = (
            self._log.with_suffix(suffix).read_text(errors="replace") for suffix in (".out", ".err")
        )
        return Outcome(os.waitstatus_to_exitcode(status), stdout, stderr, self.process)


def run(arguments: list[str], log: Path) -> Outcome:
    """Run a command undisturbed."""
    return Running(arguments, log).end()


def trace(arguments: list[str], log: Path, folder: Path) -> Outcome:
    """Run a command undisturbed and list its write points inside `folder`."""
    running = Running(arguments, log, folder)
    points = []
    while point := running.next():
        points.append(point)
    outcome = running.end()
    outcome.points = points
    return outcome


def run_with_fault(
    arguments: list[str], log: Path, folder: Path, where: Point, fault: str
) -> Outcome:
    """Run a command and break it at `where`.

    `fault`: `before`, `after` or `within` (SIGKILL before or after the call, or when half of a write is
    done), `EIO`, `ENOSPC` (for good), `SIGTERM`, `SIGINT`, `SIGTERM twice`, `SIGINT twice`.
    """
    running = Running(arguments, log, folder)
    reached = again = False
    while point := running.next():
        if again:
            running.signal(SIGNALS[fault.split()[0]])
            again = False
        elif reached and fault == "ENOSPC" and point.call in NEEDS_SPACE:
            running.fail(errno.ENOSPC)
        elif not reached and str(point) == str(where):
            reached = True
            again = fault.endswith("twice")
            _break(running, fault)
    outcome = running.end()
    outcome.reached = reached
    return outcome


def _break(running: Running, fault: str) -> None:
    if fault in ERRORS:
        running.fail(ERRORS[fault])
    elif fault.split()[0] in SIGNALS:
        running.signal(SIGNALS[fault.split()[0]])
    else:
        if fault != "before":
            running.perform(0.5 if fault == "within" else 1.0)
        running.kill()


def _fail(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), "/its/disk")


def _be_cola(arguments: list[str], log: Path, tell: socket.socket | None) -> None:
    """In the child: become `cola ARGUMENTS` and never return."""
    code = 70
    try:
        os.setsid()
        for descriptor, suffix in ((1, ".out"), (2, ".err")):
            opened = os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(opened, descriptor)
            os.close(opened)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["cola", *arguments]
        signal.signal(FAILURE, _fail)
        if tell is not None:
            try:
                descriptor = seccomp.install()
            except seccomp.Unavailable as error:
                tell.send(str(error).encode())
                os._exit(code)
            socket.send_fds(tell, [b"ready"], [descriptor])
            os.close(descriptor)
            tell.close()
        from cola_cli.cli.main import main

        try:
            main()
            code = 0
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 1
        # as the interpreter ends: threads first, then what is still in buffers
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        code = 71
    finally:
        os._exit(code)
