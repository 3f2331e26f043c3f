"""The checkpoints of an unfinished training as directories: which of them count, and how they are removed."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from cola_cli.artifacts.files import remove_directory, remove_file, sync, writing_failed

CHECKPOINTS = "checkpoints"
COMMITTED = "COMMITTED.json"  # written last: without it there is no checkpoint
_STEP = re.compile(r"step-(\d{8,})$")


def committed(directory: Path) -> list[tuple[int, Path]]:
    """Step and path of every committed checkpoint, oldest first."""
    found = []
    for path in directory.glob("step-*"):
        match = _STEP.search(path.name)
        if match and (path / COMMITTED).is_file():
            found.append((int(match[1]), path))
    return sorted(found)


def prune(directory: Path, keep_last: int, keep_every: int, always: int = 0) -> None:
    """Remove uncommitted left-overs and all but the last `keep_last` and every `keep_every`-th step.

    That of step `always` stays as well.
    """
    found = committed(directory)
    kept = {path for _, path in found[-keep_last:]}
    kept |= {path for step, path in found if step == always}
    if keep_every:
        kept |= {path for step, path in found if step % keep_every == 0}
    for path in directory.glob("step-*"):
        if path not in kept:
            remove(path)


def remove(path: Path) -> None:
    """Remove one checkpoint. Its record goes first, so a kill leaves an uncommitted one."""
    remove_file(path / COMMITTED)
    remove_directory(path)


def remove_all(directory: Path, kept: Collection[str] = ()) -> None:
    """Remove every checkpoint and the directory, but those whose files are all `kept`, see `files_of`."""
    found = list(directory.glob("step-*"))
    left = [path for path in found if kept and set(files_of(path)) <= set(kept)]
    for path in found:
        if path not in left:
            remove(path)
    try:
        if directory.exists() and not left:
            remove_directory(directory)
        for path in left:
            for own in path.glob("written-*.json"):  # of use until the checkpoint is committed
                remove_file(own)
            sync(path)
        if left:
            sync(directory)
    except OSError as error:
        raise writing_failed(directory, error) from error


def files_of(path: Path) -> list[str]:
    """The names of the files of the checkpoint at `path`, relative to its artifact."""
    names = {COMMITTED} | {file.name for file in path.iterdir()}
    names = {name for name in names if not name.startswith("written-")}
    return [f"{CHECKPOINTS}/{path.name}/{name}" for name in sorted(names)]
