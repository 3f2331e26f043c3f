"""Atomic files: written under a temporary name beside the target, synced, renamed, directory synced."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_cli.artifacts import mirror
from cola_cli.errors import ColaError, OutputConflict, is_encodable
from cola_cli.machine.liveness import state_of

# Our temporary files are named after process and host; safetensors draws random names.
TEMPORARY = re.compile(r"\.tmp-(?P<process>\d+)(@(?P<host>[0-9a-f]{8}))?$|^\.tmp\w{6}$")
ABANDONED_SECONDS = 86400.0  # since the last byte of a temporary file of another host
# Libraries written in Rust (safetensors, tokenizers) report the error of the system in their message only.
RUST_ERROR = re.compile(r"\(os error (\d+)\)")
READ_BYTES = 1 << 20


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


# Mode of new files by the umask, which can be read only by setting it: so once, at import.
MODE = 0o666 & ~_umask()


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text in UTF-8."""
    return sha256_bytes(text.encode())


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb", buffering=0) as stream:
        return sha256_stream(stream)


def sha256_stream(stream: Any) -> str:
    """Hexadecimal SHA-256 of what a binary stream holds, read in pieces so that memory stays flat."""
    return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make the bytes of a file, or the renames and removals inside a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # which a call on a descriptor does not know
        raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced and renamed to `path`, on error removed.

    Readers see the old file or the whole new one, never a part of it. A copy of what lies in an object store
    is then put there.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}@{_host()}")
    try:
        make_directory(path.parent)
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            # safetensors makes its files private, whatever the user's umask
            if not os.fstat(descriptor).st_mode & 0o077:
                os.fchmod(descriptor, MODE)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync(path.parent)
        mirror.put(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if failure := _system_error(error):
            raise writing_failed(path, failure) from error
        raise


def remove_file(path: Path) -> None:
    """Remove a file, here and in the store whose copy it is; it need not be there."""
    path.unlink(missing_ok=True)
    mirror.remove(path)


def remove_directory(path: Path) -> None:
    """Remove a directory with all in it, as `remove_file` does."""
    shutil.rmtree(path, ignore_errors=True)
    mirror.remove_below(path)


def move(path: Path, target: Path) -> None:
    """Rename a file within an artifact, here and in the store."""
    os.replace(path, target)
    path.unlink(missing_ok=True)  # two links to one file are not renamed
    mirror.move(path, target)


@contextlib.contextmanager
def temporary_directory(within: Path) -> Iterator[Path]:
    """A place in `within` to make what is then moved up as one; gone afterwards. Its path is not made yet.

    What killed processes left there is removed first.
    """
    make_directory(within)
    for path in within.iterdir():
        if TEMPORARY.search(path.name) and path.is_dir() and not is_being_written(path):
            shutil.rmtree(path)
    place = within / f"new.tmp-{os.getpid()}@{_host()}"
    try:
        yield place
        sync(within)
    except OSError as error:
        raise writing_failed(within, error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _system_error(error: BaseException) -> OSError | None:
    """The error of the system behind an exception, if there is one."""
    if isinstance(error, OSError):
        return error
    found = RUST_ERROR.search(str(error)) if isinstance(error, Exception) else None
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of `path` in one step."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def arrow_file(path: Path, mode: str = "rb") -> Any:
    """The file as Arrow reads or writes it. A path that pyarrow is given itself may be a URI or `~` to it."""
    import pyarrow

    return pyarrow.OSFile(os.fsencode(path), mode)


@contextlib.contextmanager
def utf8_name(path: Path) -> Iterator[Path]:
    """A name of an existing file or directory for libraries written in Rust, which need UTF-8."""
    if is_encodable(str(path)):
        yield path
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield Path(f"/dev/fd/{descriptor}")
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create `directory` and its parents, each made durable in its own parent."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    try:
        directory.mkdir(exist_ok=True)
        sync(directory.parent)
    except OSError as error:
        raise writing_failed(directory, error) from error


def remove_temporaries(directory: Path) -> None:
    """Remove the temporary files of killed writers. Only the holder of the lock may call this."""
    for path in directory.rglob("*"):
        if TEMPORARY.search(path.name) and path.is_file() and not is_being_written(path):
            path.unlink(missing_ok=True)


def is_being_written(path: Path) -> bool:
    """Whether another process may still write a temporary file: for a part it does not hold the lock."""
    found = TEMPORARY.search(path.name)
    if found is None or found["process"] is None:
        return False
    if found["host"] in (None, _host()):
        process = int(found["process"])
        return process != os.getpid() and state_of(process, socket.gethostname()) != "dead"
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime < ABANDONED_SECONDS
    return False


def _host() -> str:
    """A short name of this machine without characters that file names may not have."""
    return sha256_text(socket.gethostname())[:8]


def refuse_link(path: Path) -> None:
    """Raise OutputConflict when `path` is a link, pipe or device: writing through it would change files
    elsewhere."""
    mode = path.lstat().st_mode if os.path.lexists(path) else stat.S_IFREG
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OutputConflict(
            f"{path} is a link or not a regular file; cola does not write through it.",
            "Remove it, or choose another output directory; nothing was touched.",
        )


def writing_failed(path: Path, error: OSError) -> ColaError:
    """The ColaError of a failed write, with a remedy. It names the file below `path` that the system does."""
    for name in (error.filename2, error.filename):
        if isinstance(name, str | Path) and Path(name).is_relative_to(path):
            path = Path(name)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ColaError(
            f"the disk is full: {path} could not be written.",
            "Free some space and run the same command again; what is finished is kept.",
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT):
        return OutputConflict(
            f"{path} cannot be written ({os.strerror(error.errno)}).",
            "Choose another output directory or change its permissions.",
        )
    if error.errno == errno.ENOTEMPTY:
        return OutputConflict(
            f"{path} was filled by another process meanwhile.", "Choose another output directory."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return OutputConflict(
            f"{path} cannot be written: a file lies where a directory is needed.",
            "Choose another output directory.",
        )
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ColaError(
        f"writing {path} failed ({reason}).",
        "Check the disk and run the same command again; what is finished is kept.",
    )
