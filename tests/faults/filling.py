"""A real file system that is really full, in a name space of its own where the system allows one."""

from __future__ import annotations

import ctypes
import json
import os
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.cases import DONE, Case, Trial, Verdict
from tests.faults.stages import Stages

_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000
_REMOUNT, _RECURSIVE_PRIVATE = 32, 0x4000 | (1 << 18)
PAGE = os.sysconf("SC_PAGE_SIZE")


class NoMount(Exception):
    """The system lets nobody mount here; the reason is the message."""


def mount(folder: Path, pages: int, again: bool = False) -> None:
    """A file system in memory of so many pages, or another size of it. Raises NoMount."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={pages * PAGE}".encode()
    flags = _REMOUNT if again else 0
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options):
        raise NoMount(f"tmpfs cannot be mounted ({os.strerror(ctypes.get_errno())})")


def enter_namespace() -> None:
    """Give this process mounts of its own, and rights over them. Raises NoMount."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS | _NEW_USERS):
        raise NoMount(f"no name space of users ({os.strerror(ctypes.get_errno())})")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"none", b"/", None, _RECURSIVE_PRIVATE, None):
        raise NoMount(f"no mounts of its own ({os.strerror(ctypes.get_errno())})")


def full_disks(stages: Stages, stage: str, pages: int) -> Iterator[Case]:
    """A disk of every second size from nothing to what the stage needs."""
    for size in range(1, pages, 2):
        check = partial(_in_child, stages, stage, size)
        yield Case(stage, "full disks", f"{size * PAGE // 1024} KiB", check)


def _in_child(stages: Stages, stage: str, pages: int, folder: Path) -> Verdict:
    """The case in a process of its own, as a name space is entered for good."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            os.close(reading)
            enter_namespace()
            verdict = _fill(stages, stage, pages, folder)
        except BaseException:
            verdict = Verdict([traceback.format_exc()])
        os.write(writing, json.dumps(vars(verdict)).encode()[: 1 << 16])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return Verdict(**json.loads(text))


def _fill(stages: Stages, stage: str, pages: int, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    mount(trial.watched, pages)
    outcome = trial.run()
    if outcome.code == DONE:
        trial.compare()
    elif outcome.code < 0 or outcome.code >= 70 or "disk is full" not in outcome.stderr:
        trial.unclear("it does not say that the disk is full", outcome)
    else:
        trial.said(outcome, trial.output)
    if left := trial.left_overs():
        trial.unclear(f"left over: {', '.join(left)}")
    mount(trial.watched, 1 << 16, again=True)
    return trial.finish()


def why_not() -> str:
    """Why no disk can be filled here; empty when one can."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            enter_namespace()
            mount(Path("/mnt"), 1)
        except (NoMount, OSError) as error:
            os.write(writing, str(error).encode() or b"unknown")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        reason = stream.read().decode()
    os.waitpid(child, 0)
    return reason
