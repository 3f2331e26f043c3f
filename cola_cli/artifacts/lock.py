"""One writer an artifact: an advisory file lock that the kernel drops when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cola_cli.artifacts.files import make_directory, refuse_links, writing_failed
from cola_cli.artifacts.reading import parse_json, shown
from cola_cli.errors import OutputLocked

LOCK_NAME = ".lock"


@contextlib.contextmanager
def writer_lock(directory: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the writer's lock of `directory`.

    Raises OutputConflict, naming the holder, when another live process has it, and when a link in the
    directory would have the writer change files elsewhere. The file stays when the
    lock is released (removing it would let two writers hold two different files of that name), empty.
    """
    make_directory(directory)
    refuse_links(directory)
    with locked(directory, wait_seconds):
        yield


@contextlib.contextmanager
def locked(directory: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """`writer_lock` of a directory that is there and whose links were looked at before."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(directory / LOCK_NAME, flags, 0o644)
    except OSError as error:
        raise writing_failed(directory / LOCK_NAME, error) from error
    try:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(descriptor, directory):
            if time.monotonic() >= deadline:
                raise OutputLocked(
                    f"{directory} is being written by {_holder(descriptor)}.",
                    "Wait for it, stop it, or choose another output directory.",
                )
            time.sleep(0.1)
        try:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_self_description()).encode(), 0)
        except OSError as error:
            raise writing_failed(directory / LOCK_NAME, error) from error
        try:
            yield
        finally:
            # whose name stands there matters only while it is locked
            with contextlib.suppress(OSError):
                os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder_of(directory: Path) -> str | None:
    """Who writes to the artifact now, or None."""
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # no pipe to wait at
        descriptor = os.open(directory / LOCK_NAME, flags)
    except OSError:
        return None
    try:
        # A shared lock is enough to see whether a writer has the exclusive one, and is gone at once.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
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


def _holder(descriptor: int) -> str:
    try:
        holder = parse_json(os.pread(descriptor, 65536, 0))
        return shown(
            f"process {holder['pid']} on {holder['host']} since {holder['since']}"
            f" ({holder['command']})",
            1000,
        )
    except (ValueError, KeyError, TypeError):
        return "another process"
