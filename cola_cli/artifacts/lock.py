"""One writer an artifact: an advisory file lock that the kernel drops when its holder dies."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cola_cli.artifacts import mirror
from cola_cli.artifacts.files import make_directory, refuse_link, writing_failed
from cola_cli.artifacts.lease import Lease, holder_in_store
from cola_cli.artifacts.manifest import MANIFEST_NAME
from cola_cli.artifacts.reading import parse_json, shown
from cola_cli.errors import OutputConflict, OutputLocked
from cola_cli.machine.file_locks import fcntl
from cola_cli.machine.liveness import state_of

LOCK_NAME = ".lock"
STOPPED_SECONDS = 30.0  # for a holder that is stopped to go on
POLL_SECONDS = 0.1
SHARING_TRIES = 5
CLAIM_BYTES = 512  # of the lock file, where the holder of a task is named


@contextlib.contextmanager
def writer_lock(directory: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the writer's lock of `directory`.

    Raises OutputConflict, naming the holder, when another live process has it, and when a link in the
    directory would have the writer change files elsewhere. The file stays when the
    lock is released (removing it would let two writers hold two different files of that name), empty.
    """
    make_directory(directory)
    for path in directory.rglob("*"):
        refuse_link(path)
    with locked(directory, wait_seconds):
        mirror.pull(directory, whole=True)
        yield


@contextlib.contextmanager
def locked(directory: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """`writer_lock` of a directory that exists and was checked for links."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(directory / LOCK_NAME, flags, 0o644)
    except IsADirectoryError as error:
        raise OutputConflict(
            f"{directory / LOCK_NAME} is a directory where the lock belongs.",
            "Choose another output directory.",
        ) from error
    except OSError as error:
        raise writing_failed(directory / LOCK_NAME, error) from error
    try:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(descriptor, directory):
            if time.monotonic() >= deadline:
                raise _locked(directory, descriptor)
            time.sleep(POLL_SECONDS)
        try:
            os.truncate(descriptor, 0)
            about = _self_description()
            os.pwrite(descriptor, json.dumps(about).encode(), 0)
        except OSError as error:
            raise writing_failed(directory / LOCK_NAME, error) from error
        try:
            with Lease(directory, about).held(deadline):
                mirror.fetch(directory / MANIFEST_NAME, again=True)  # others may have finished it
                yield
        finally:
            # the holder's name matters only while the lock is held
            with contextlib.suppress(OSError):
                os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


class Claims:
    """Numbered tasks that at most one live process does: the kernel drops a claim with its holder."""

    def __init__(self, path: Path) -> None:
        make_directory(path.parent)
        self._stopped = Patience(STOPPED_SECONDS)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise writing_failed(path, error) from error

    def take(self, number: int) -> bool:
        """Claim a task until this process ends; False when another process has it."""
        try:
            fcntl.lockf(
                self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, CLAIM_BYTES, number * CLAIM_BYTES
            )
        except (BlockingIOError, PermissionError):  # by POSIX either may say so
            return False
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.pwrite(self._descriptor, holder.encode().ljust(CLAIM_BYTES), number * CLAIM_BYTES)
        return True

    def wait(self, number: int) -> None:
        """Wait a moment for a task that another process has.

        Raises OutputLocked when that process has been stopped by a signal at every call for half a minute.
        """
        time.sleep(POLL_SECONDS)
        holder = _Holder(os.pread(self._descriptor, CLAIM_BYTES, number * CLAIM_BYTES))
        if self._stopped.is_over(holder.is_stopped):
            raise _stopped_holder(f"a part of the work is held by {holder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


@contextlib.contextmanager
def sharing(directory: Path) -> Iterator[None]:
    """Tell `holder_of` that this process makes parts of `directory`, though it locks it only now and then.

    The lock is on the directory itself, so it leaves no file; a file system without such locks tells nobody.
    """
    make_directory(directory)
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            for _ in range(SHARING_TRIES):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # `holder_of` looks, for an instant
                    time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def holder_of(directory: Path) -> str | None:
    """Who writes to the artifact now, or None."""
    shards = "shards" if _is_shared(directory) else None
    return _writer_of(directory) or shards or holder_in_store(directory)


def _is_shared(directory: Path) -> bool:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    else:
        return False
    finally:
        os.close(descriptor)


def _writer_of(directory: Path) -> str | None:
    try:
        # opening a pipe must not block
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(directory / LOCK_NAME, flags)
    except OSError:
        return None
    try:
        # A shared lock is enough to see whether a writer has the exclusive one, and is gone at once.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return str(_Holder.of(descriptor))
    else:
        return None
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, directory: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise writing_failed(directory / LOCK_NAME, error) from error
    return True


def _self_description() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


class _Holder:
    """Who holds a lock or a task, as it says of itself in the file: in words, and whether it is stopped."""

    def __init__(self, text: bytes) -> None:
        self._words, self.is_stopped = "another process", False
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found = parse_json(text)
            more = f" since {found['since']} ({found['command']})" if "since" in found else ""
            self._words = shown(f"process {found['pid']} on {found['host']}{more}", 1000)
            self.is_stopped = state_of(int(found["pid"]), str(found["host"])) == "stopped"

    @classmethod
    def of(cls, descriptor: int) -> _Holder:
        """The holder of a lock file."""
        return cls(os.pread(descriptor, 65536, 0))

    def __str__(self) -> str:
        return self._words


class Patience:
    """Ends a wait whose reason lasts too long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def is_over(self, reason: bool) -> bool:
        """Whether the reason was there at every call for `seconds`."""
        now = time.monotonic()
        self._since = (self._since or now) if reason else None
        return self._since is not None and now - self._since > self._seconds


def _stopped_holder(problem: str) -> OutputLocked:
    return OutputLocked(
        f"{problem}, which is stopped.",
        "Let that process go on (kill -CONT) or end it, then run the same command again.",
        stopped=True,
    )


def _locked(directory: Path, descriptor: int) -> OutputLocked:
    holder = _Holder.of(descriptor)
    problem = f"{directory} is being written by {holder}"
    if holder.is_stopped:
        return _stopped_holder(problem)
    return OutputLocked(f"{problem}.", "Wait for it, stop it, or choose another output directory.")
