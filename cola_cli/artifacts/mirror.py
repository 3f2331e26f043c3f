"""Copies on this machine of what lies in an object store: a folder that is read and written as any other.

What is written there durably is put into the store at once, in the same order, so that the order of part,
record and manifest holds in the store as on a disk. A file may be in the store alone (`elsewhere`) until
it is asked for (`fetch`). The store is right wherever the two differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache as once
from pathlib import Path
from typing import Any

from cola_cli.artifacts import stores
from cola_cli.artifacts.stores import Changed, Found, Missing, Place, Unchanged
from cola_cli.errors import ColaError, InputError, OutputConflict, UsageError
from cola_cli.machine.file_locks import fcntl

TAGS = "tags"  # within the cache: the version in the store that each copy is of
MANIFEST = "manifest.json"
HERE = ".here"  # what of the scratch files is of this machine alone
OWN = (".lock", HERE)  # not put into the store, nor fetched
SCRATCH = ".scratch"  # what the makers of an unfinished artifact share; gone when it is finished
TEMPORARY = re.compile(r"\.tmp")
SMALL = re.compile(r"\.json$|(^|/)metrics[^/]*\.parquet$")
DATA = re.compile(r"(^|/)parts/\d{5,}\.(?!json$)[^/]+$")
RECORD = re.compile(r"/parts/\d{5,}\.json$")
CACHE_BYTES = 20 << 30
FRESH_SECONDS = 5.0  # in which a copy that was asked for is opened
AT_ONCE = 16  # requests

# Sizes of the objects that were listed, by their paths on this machine.
_listed: dict[Path, int] = {}
# What must hold before this process writes below a folder, such as that its lease is valid.
guards: dict[Path, Callable[[], None]] = {}


def pull(path: Path, whole: bool = False, listed: bool = False) -> None:
    """Bring the copy of an artifact, a folder of some, or a file up to date; nothing of a path elsewhere.

    Of a finished artifact the manifest alone is fetched, of an unfinished one what is small besides, of
    another folder everything. whole: all but data parts, for who goes on with it. listed: the names of all
    objects are asked for, even if the manifest has them.
    """
    place = Place.of(path)
    if place is None or (not whole and _is_written(path)):
        return
    with _alone(path):
        if not (whole or listed) and _is_finished(path):
            return
        found = {_file(path, place, one): one for one in place.list()}
        found = {file: one for file, one in found.items() if _is_pulled(file)}
        busy = [] if whole else _being_written(path)
        if not found:
            _forget(path, busy)
            with contextlib.suppress(Missing):
                if place.key:
                    place.head()
                    fetch(path)
            return
        for file in [one for one in _listed if one.is_relative_to(path)]:
            del _listed[file]
        _listed.update({file: one.bytes for file, one in found.items()})
        for file in [*path.rglob("*")] if path.is_dir() else []:
            if file.is_file() and _is_pulled(file) and not _is_below(file, busy):
                one = found.get(file)
                if one is None:
                    file.unlink()
                    _tag_file(file).unlink(missing_ok=True)
                elif not _is_copy(file, one):
                    file.unlink()
        path.mkdir(parents=True, exist_ok=True)
        manifests = [file for file in found if file.name == MANIFEST]
        fetch_all(manifests)
        if whole:
            wanted = [
                file for file in found if not DATA.search(file.as_posix()) or ".new" in file.parts
            ]
        elif manifests:
            done = {file.parent for file in manifests if _says_complete(file)}
            wanted = [
                file for file in found
                if SMALL.search(file.as_posix()) and done.isdisjoint(file.parents)
            ]  # fmt: skip
        else:
            wanted = [*found]
        fetch_all(wanted)


def fetch(path: Path, again: bool = False) -> Path:
    """Have the copy of an object at `path`, if it lies in a store at all; returns `path`.

    again: whatever is there. Leaves a path alone whose object does not exist.
    """
    place = Place.of(path)
    if place is None:
        return path
    if path.exists() and not again:
        with contextlib.suppress(OSError):
            status = path.stat()
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return path
    with contextlib.suppress(Missing):
        with _replacing(path) as temporary:
            tag = place.download(temporary, make_room)
        _remember(path, tag)
    return path


def fetch_all(paths: Iterable[Path]) -> None:
    """Have the copies of many, several at once."""
    missing = [path for path in paths if not path.exists() and stores.address_of(path)]
    if missing:
        list(_pool(os.getpid()).map(fetch, missing))


def fetch_ahead(paths: Iterable[Path]) -> None:
    """Begin to have the copies of what is read next; what goes wrong is told when it is read."""
    for path in paths:
        if stores.address_of(path) and not path.exists():
            _ahead.setdefault(path, _pool(os.getpid()).submit(fetch, path))


_ahead: dict[Path, Future[Path]] = {}


def arrived(path: Path) -> Path:
    """`fetch` of a path that may be on its way."""
    if (future := _ahead.pop(path, None)) is not None:
        with contextlib.suppress(ColaError, OSError):
            future.result()
    return fetch(path)


def elsewhere(path: Path) -> int | None:
    """Bytes of an object that is in the store alone; None for a file that is here, or nowhere."""
    if stores.address_of(path) is None or path.exists():
        return None
    if path not in _listed:
        place = Place.of(path)
        assert place is not None
        with contextlib.suppress(Missing):
            _listed[path] = place.head().bytes
    return _listed.get(path)


def exists(path: Path) -> bool:
    """Whether a file is here, or in the store."""
    return path.exists() or elsewhere(path) is not None


def list_below(directory: Path) -> None:
    """Learn of all objects below a folder in one go, so that nobody has to ask for each."""
    if place := Place.of(directory):
        _listed.update({_file(directory, place, one): one.bytes for one in place.list()})


def names_elsewhere(directory: Path) -> list[Path]:
    """The paths of all objects below a folder that are in the store alone, as far as they were listed."""
    if stores.address_of(directory) is None:
        return []
    return [one for one in _listed if one.is_relative_to(directory) and not one.exists()]


def put(path: Path) -> None:
    """Put a file that was written durably into the store, if it lies in one.

    Raises OutputConflict when a manifest or a record has been written by somebody else meanwhile.
    """
    place = Place.of(path)
    if place is None or _is_own(path):
        return
    _guard(path)
    only = None
    if path.name == MANIFEST:
        only = _tag(path)[0] if _tag_file(path).exists() else ""
    elif RECORD.search(path.as_posix()):
        only = ""
    try:
        tag = place.put(path.read_bytes() if only is not None else path, only)
    except Changed:
        # an answer may have been lost, and the request was repeated
        theirs, tag = place.get()
        if theirs != path.read_bytes():
            path.unlink()
            raise OutputConflict(
                f"{path} was written by another process meanwhile.", "Run the command again."
            ) from None
    _remember(path, tag)
    _listed[path] = path.stat().st_size


def remove(path: Path) -> None:
    """Remove the object of a file that was removed here."""
    if not _is_own(path):
        _delete(path)


def remove_below(path: Path) -> None:
    """Remove the objects of a folder that was removed here, a lock in it too."""
    if place := Place.of(path):
        for one in [*place.list()]:
            _delete(_file(path, place, one))


def _delete(path: Path) -> None:
    place = Place.of(path)
    if place is None:
        return
    _guard(path)
    place.delete()
    _listed.pop(path, None)
    _tag_file(path).unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    """Move the object of a file that was moved here, to a place of the same artifact."""
    place, to = Place.of(path), Place.of(target)
    if place is None or to is None:
        return
    if target.name == MANIFEST:
        put(target)
    else:
        _guard(target)
        _remember(target, to.copy_from(place))
        _listed[target] = target.stat().st_size
    remove(path)


def make_room(size: int) -> None:
    """Remove the copies that were not used for longest until the cache has room for so many bytes more."""
    global _used
    bound = _bound()
    if _used is not None and _used + size <= bound:
        _used += size
        return
    copies, total = [], 0
    root = stores.cache() / stores.OBJECTS
    busy = _being_written(root)
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            if not path.is_file():
                continue
            total += status.st_size
            idle = time.time() - status.st_atime > FRESH_SECONDS
            if idle and not SMALL.search(path.as_posix()) and not _is_below(path, busy):
                copies.append((status.st_atime, status.st_size, path))
    for _, bytes_, path in sorted(copies):
        if total + size <= bound * 0.9:
            break
        if _is_copy(path):  # else nobody has it besides
            path.unlink(missing_ok=True)
            _tag_file(path).unlink(missing_ok=True)
            total -= bytes_
    _used = total + size


_used: int | None = None  # bytes of the cache, as far as this process knows


def _bound() -> int:
    text = os.environ.get("COLA_CACHE_BYTES", str(CACHE_BYTES))
    if not text.isdecimal():
        raise UsageError(
            f"variable COLA_CACHE_BYTES: {text!r} is not a number of bytes.", "Try 20000000000."
        )
    return int(text)


@once
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads that fetch, of this process."""
    return ThreadPoolExecutor(AT_ONCE, "store")


def _file(path: Path, place: Place, found: Found) -> Path:
    """The path of an object below a folder. Raises InputError for a name that would lead out of it."""
    name = found.key.removeprefix(place.key).lstrip("/")
    if not name or {".", "..", ""} & {*name.split("/")}:
        raise InputError(
            f"{place.address} holds an object of the name {found.key!r}, which no file can have.",
            "Remove that object, or name a folder without it.",
        )
    return path / name


def _is_own(path: Path) -> bool:
    return bool(TEMPORARY.search(path.name)) or any(name in path.parts for name in OWN)


def _is_pulled(path: Path) -> bool:
    """Whether `pull` is to care: of scratch files those who use them do."""
    return not _is_own(path) and SCRATCH not in path.parts


def _guard(path: Path) -> None:
    for folder, check in [*guards.items()]:
        if path.is_relative_to(folder):
            check()


def _is_finished(path: Path) -> bool:
    """Whether the artifact in the store is finished; its manifest is here then."""
    place = Place.of(path / MANIFEST)
    assert place is not None
    file = path / MANIFEST
    known = _tag(file)[0] if file.exists() and _is_copy(file) else None
    try:
        data, tag = place.get(known)
    except Unchanged:
        return _says_complete(file)
    except Missing:
        return False
    with _replacing(file) as temporary:
        temporary.write_bytes(data)
    _remember(file, tag)
    return _says_complete(file)


def _says_complete(manifest: Path) -> bool:
    return b'\n  "status": "complete"' in manifest.read_bytes()


def _tag_file(path: Path) -> Path:
    root = stores.cache()
    return root / TAGS / f"{path.relative_to(root / stores.OBJECTS)}.tag"


def _remember(path: Path, tag: str) -> None:
    """Note of which version in the store the file at `path` is a copy."""
    status = path.stat()
    with _replacing(_tag_file(path)) as temporary:
        temporary.write_text(json.dumps([tag, status.st_size, status.st_mtime_ns, status.st_ino]))


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A new file that takes the place of `path` when all goes well.

    Not synced as `files.atomic_file` is, nor put into the store: what is lost here is fetched again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}-{time.monotonic_ns()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _tag(path: Path) -> list[Any]:
    """Tag of the version in the store that was last seen, and size, time and inode of the copy of it."""
    try:
        return json.loads(_tag_file(path).read_bytes())
    except (OSError, ValueError):
        return [None, None, None, None]


def _is_copy(path: Path, of: Found | None = None) -> bool:
    """Whether a file is as it was fetched or put, and that version is the one in the store now."""
    tag, *noted = _tag(path)
    status = path.stat()
    same = noted == [status.st_size, status.st_mtime_ns, status.st_ino]
    return same and tag is not None and (of is None or tag == of.tag)


def _forget(path: Path, busy: list[Path]) -> None:
    """Remove the copies of what is not in the store any more, but for artifacts that are being written."""
    entries = [*path.rglob("*"), path] if path.is_dir() else [path]
    for entry in sorted(entries, reverse=True):  # what a folder holds before it
        if entry.name == OWN[0] or TEMPORARY.search(entry.name) or _is_below(entry, busy):
            continue
        with contextlib.suppress(OSError):  # such as a folder that is not empty
            if entry.is_dir():
                entry.rmdir()
            else:
                entry.unlink()
                _tag_file(entry).unlink(missing_ok=True)


def _being_written(path: Path) -> list[Path]:
    """The artifacts at or below a folder that processes of this machine write."""
    return [lock.parent for lock in path.rglob(OWN[0]) if _is_written(lock.parent)]


def _is_below(path: Path, folders: list[Path]) -> bool:
    return any(map(path.is_relative_to, folders))


def _is_written(directory: Path) -> bool:
    """Whether a process of this machine writes the artifact, whose copy is newer than the store then."""
    try:
        descriptor = os.open(directory / OWN[0], os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process of this machine brings the same folder up to date."""
    file = _tag_file(path).with_suffix(".pull")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
