"""A power cut at every write point: what was written and not synced is gone.

A quiet run is watched, and at each point two disks are drawn that the rules of `fsync` allow there:

- `lost`: of files only the bytes of their last fsync, of folders only the entries of theirs;
- `empty`: every entry has reached the disk (renames too), but of bytes only those synced.

The stage is then run again on each disk that is not like one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.cases import Case, Trial, Verdict
from tests.faults.points import Point
from tests.faults.processes import Outcome, Running
from tests.faults.stages import Stages

Disk = dict[str, bytes | None]  # bytes by path, None for a folder


class Synced:
    """What has reached the disk, by inode: at first all that is there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._bytes: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, tuple[int, bool]]] = {}
        for path in (root, *root.rglob("*")):
            self.sync(path)

    def sync(self, path: Path) -> None:
        """Take down an fsync of `path`."""
        inode = path.stat().st_ino
        if path.is_dir():
            self._entries[inode] = {p.name: (p.stat().st_ino, p.is_dir()) for p in path.iterdir()}
        else:
            self._bytes[inode] = path.read_bytes()

    def lost(self) -> Disk:
        """The disk with nothing on it that was not synced."""
        disk: Disk = {}

        def walk(inode: int, prefix: str) -> None:
            for name, (child, is_folder) in self._entries.get(inode, {}).items():
                disk[prefix + name] = None if is_folder else self._bytes.get(child, b"")
                if is_folder:
                    walk(child, f"{prefix}{name}/")

        walk(self.root.stat().st_ino, "")
        return disk

    def empty(self) -> Disk:
        """The disk with all entries, but of bytes only those synced."""
        return {
            path.relative_to(self.root).as_posix(): None
            if path.is_dir()
            else self._bytes.get(path.stat().st_ino, b"")
            for path in self.root.rglob("*")
        }


def trace_disks(
    arguments: list[str], log: Path, folder: Path
) -> tuple[Outcome, dict[str, tuple[str, Disk]]]:
    """Run a stage undisturbed; its points and every distinct disk after a power cut, by name."""
    running = Running(arguments, log, folder)
    synced = Synced(folder)
    pending: Path | None = None
    disks: dict[str, tuple[str, Disk]] = {}
    points: list[Point] = []
    while point := running.next():
        if pending is not None and pending.exists():
            # it has happened by now, and no byte of that file has changed since
            synced.sync(pending)
        points.append(point)
        pending = running.path if point.call == "fsync" else None
        for rule, disk in (("lost", synced.lost()), ("empty", synced.empty())):
            digest = _digest(disk)
            if digest not in {key for key, _ in disks.values()}:
                disks[f"{rule} before {point}"] = digest, disk
    outcome = running.end()
    outcome.points = points
    return outcome, disks


def _digest(disk: Disk) -> str:
    digest = hashlib.sha256()
    for name in sorted(disk):
        data = disk[name]
        digest.update(f"{name}\0{'-' if data is None else len(data)}\0".encode() + (data or b""))
    return digest.hexdigest()


def power_cuts(stages: Stages, stage: str, disks: dict[str, tuple[str, Disk]]) -> Iterator[Case]:
    """Run the stage on each disk that a power cut may leave."""
    for name, (_, disk) in disks.items():
        yield Case(stage, "power cuts", name, partial(_cut, stages, stage, disk))


def _cut(stages: Stages, stage: str, disk: Disk, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder)
    trial.watched.mkdir()
    for name, data in sorted(disk.items()):
        path = trial.watched / name
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return trial.finish()
