"""Write points: what a held system call would do to which file, and doing it in the process's stead."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from tests.faults.seccomp import Call

# Cola's temporary names hold the process number, those of safetensors are drawn at random.
TEMPORARY = re.compile(r"\.tmp-\d+@\w+$|(?<=/)\.tmp\w{6}$")
WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
_AT_CWD = 0xFFFFFF9C  # AT_FDCWD, its low half
_REMOVE_DIRECTORY = 0x200


@dataclass(frozen=True)
class Point:
    """One write point of a stage: the `turn`-th time that `call` meets `path` in a run.

    Named by path and not by place in the sequence, as a thread that saves a checkpoint and the one that
    trains may come in either order.
    """

    call: str  # write, fsync, rename, unlink, open, mkdir, rmdir, truncate, flock
    path: str  # relative to the folder watched, process numbers left out
    turn: int = 1
    size: int = 0  # bytes of a write

    def __str__(self) -> str:
        return f"{self.call} {self.path} #{self.turn}"

    @property
    def phase(self) -> str:
        """Points of the same phase differ in numbers alone."""
        return f"{self.call} {re.sub('[0-9]+', 'N', self.path)}"


@dataclass(frozen=True)
class Change:
    """A held call, resolved: what it does (`kind`) to which absolute path."""

    kind: str
    path: Path
    target: Path | None = None  # of a rename
    size: int = 0


def resolve(call: Call) -> Change | None:
    """What a held call does; None when it is no change of a file (a pipe, a socket, memory)."""
    name, a = call.name, call.arguments
    if name in WRITES:
        path = _of_descriptor(call, a[0])
        return (
            None if path is None else Change("write", path, size=sum(n for _, n in _pieces(call)))
        )
    if name in ("fsync", "fdatasync", "flock", "ftruncate", "fallocate", "sendfile"):
        path = _of_descriptor(call, a[0])
        return None if path is None else Change(_SAME.get(name, name), path)
    if name == "copy_file_range":
        path = _of_descriptor(call, a[2])
        return None if path is None else Change("copy", path)
    if name == "mmap":
        path = _of_descriptor(call, a[4])
        return None if path is None else Change("mmap", path)
    if name in ("rename", "link"):
        return Change(name, _path(call, None, a[0]), _path(call, None, a[1]))
    if name in ("renameat", "renameat2", "linkat"):
        kind = "link" if name == "linkat" else "rename"
        return Change(kind, _path(call, a[0], a[1]), _path(call, a[2], a[3]))
    if name == "symlink":
        return Change(name, _path(call, None, a[1]))
    if name == "symlinkat":
        return Change("symlink", _path(call, a[1], a[2]))
    if name.endswith("at"):
        kind = name.removesuffix("at")
        if kind == "unlink" and a[2] & _REMOVE_DIRECTORY:
            kind = "rmdir"
        return Change(kind, _path(call, a[0], a[1]))
    return Change(_SAME.get(name, name), _path(call, None, a[0]))


_SAME = {"fdatasync": "fsync", "ftruncate": "truncate", "creat": "open"}


def perform(call: Call, change: Change, share: float = 1.0) -> None:
    """Do what the call would, or of a write the first `share`, so that its process can be killed after it."""
    # what fails here, such as removing what is not there, would have failed there
    with contextlib.suppress(OSError):
        _perform(call, change, share)


def _perform(call: Call, change: Change, share: float) -> None:
    a = call.arguments
    if change.kind == "write":
        _write(call, share)
    elif change.kind == "rename":
        assert change.target is not None
        os.replace(change.path, change.target)
    elif change.kind == "unlink":
        change.path.unlink()
    elif change.kind == "rmdir":
        change.path.rmdir()
    elif change.kind == "mkdir":
        change.path.mkdir()
    elif change.kind == "truncate":
        os.truncate(change.path, a[1])
    elif change.kind == "open":
        flags = a[2] if call.name == "openat" else a[1]
        os.close(os.open(change.path, flags, 0o644))
    elif change.kind not in ("fsync", "flock"):  # these two change no byte
        raise NotImplementedError(f"{call.name} on {change.path}")


def _write(call: Call, share: float) -> None:
    descriptor = f"/proc/{call.thread}/fd/{call.arguments[0]}"
    data = b"".join(_memory(call, address, size) for address, size in _pieces(call))
    if call.name in ("write", "writev"):
        fields = Path(descriptor.replace("/fd/", "/fdinfo/")).read_text().split()
        offset = int(fields[fields.index("pos:") + 1])
        if int(fields[fields.index("flags:") + 1], 8) & os.O_APPEND:
            offset = Path(descriptor).stat().st_size
    else:
        offset = call.arguments[3]
    target = os.open(descriptor, os.O_WRONLY)
    try:
        os.pwrite(target, data[: int(len(data) * share)], offset)
    finally:
        os.close(target)


def _pieces(call: Call) -> list[tuple[int, int]]:
    """Address and size of what a write takes from memory."""
    _, address, count = call.arguments[:3]
    if call.name in ("write", "pwrite64"):
        return [(address, count)]
    return list(struct.iter_unpack("QQ", _memory(call, address, 16 * count)))


def _memory(call: Call, address: int, size: int) -> bytes:
    with open(f"/proc/{call.thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def _text(call: Call, address: int) -> str:
    """The C string at an address, read in small pieces as the page after it may not exist."""
    text = b""
    while b"\0" not in text:
        text += _memory(call, address + len(text), 256 - (address + len(text)) % 256)
    return os.fsdecode(text.partition(b"\0")[0])


def _path(call: Call, directory: int | None, address: int) -> Path:
    text = _text(call, address)
    if directory is None or directory & 0xFFFFFFFF == _AT_CWD:
        base = Path(f"/proc/{call.thread}/cwd")
    else:
        base = Path(f"/proc/{call.thread}/fd/{directory}")
    return Path(os.path.normpath(base.readlink() / text))


def _of_descriptor(call: Call, descriptor: int) -> Path | None:
    try:
        path = Path(f"/proc/{call.thread}/fd/{descriptor & 0xFFFFFFFF}").readlink()
    except OSError:
        return None
    return path if path.is_absolute() else None


class Counter:
    """Names changes inside a folder as points and counts the turns of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turns: dict[tuple[str, str], int] = {}

    def point(self, change: Change) -> Point | None:
        """The point, or None when the change lies outside the folder."""
        path = change.target or change.path
        if not path.is_relative_to(self.folder):
            return None
        name = TEMPORARY.sub(".tmp", path.relative_to(self.folder).as_posix())
        key = change.kind, name
        self._turns[key] = self._turns.get(key, 0) + 1
        return Point(change.kind, name, self._turns[key], change.size)
