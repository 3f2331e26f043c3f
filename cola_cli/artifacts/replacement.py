"""--overwrite: the new artifact is made at OUTPUT/.new and takes the place of the old one when it is whole.

A move that was begun has the list `.new/replaced.json` of the old files; the manifest of the new artifact is
renamed last. The directory says `incomplete` meanwhile, and whoever takes the lock next ends the move.
"""

from __future__ import annotations

import os
from pathlib import Path

from cola_cli.artifacts import mirror
from cola_cli.artifacts.artifact import METRICS
from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS
from cola_cli.artifacts.checks import RESTORE, check_size, content_files
from cola_cli.artifacts.files import (
    make_directory,
    move,
    refuse_link,
    remove_directory,
    remove_file,
    sync,
    write_atomic,
    writing_failed,
)
from cola_cli.artifacts.manifest import (
    MANIFEST_NAME,
    NEW,
    FileRecord,
    Manifest,
    pretty_json,
    read_manifest,
    write_manifest,
)
from cola_cli.artifacts.mirror import SCRATCH
from cola_cli.artifacts.parts import is_part
from cola_cli.artifacts.reading import read_record
from cola_cli.errors import DamagedArtifact, InputError, OutputConflict

REPLACED = "replaced.json"
LIST_LIMIT = 256 << 20  # bytes


def replacement(path: Path) -> Manifest | None:
    """The manifest of the new artifact beside the one at `path`, finished or not."""
    try:
        return read_manifest(path / NEW)
    except (InputError, DamagedArtifact):
        return None


def begun(path: Path, fingerprint: str) -> Manifest | None:
    """The manifest of the new artifact of that identity, finished or not."""
    new = replacement(path)
    return new if new is not None and new.fingerprint == fingerprint else None


def moving(path: Path) -> bool:
    """Whether a new artifact has begun to take the place of the old one."""
    new = replacement(path)
    return new is not None and new.status == "complete" and (path / NEW / REPLACED).exists()


def moved(path: Path) -> bool:
    """Whether the new artifact has the place of the old one; a power cut may leave it beside as well."""
    there = read_manifest(path)
    return (
        moving(path) and there.status == "complete" and begun(path, there.fingerprint) is not None
    )


def continued(path: Path, fingerprint: str) -> Manifest | None:
    """The unfinished new artifact of that identity; one of another identity is removed."""
    new = begun(path, fingerprint)
    if new is None:
        remove(path)
    return new


def remove(path: Path) -> None:
    """Remove what was begun beside the artifact at `path`. Raises OutputConflict for files of others."""
    new = path / NEW
    if not new.is_dir():
        return
    if not (new / MANIFEST_NAME).exists() and any(
        file.name != REPLACED for file in content_files(new)
    ):
        raise OutputConflict(
            f"{new} holds files that cola did not write.", "Move it away; nothing was touched."
        )
    try:
        remove_directory(new / SCRATCH)
        for one in mirror.names_elsewhere(new):
            mirror.remove(one)
        for entry in sorted(new.rglob("*"), reverse=True):  # what a folder holds before it
            if entry.is_dir() and not entry.is_symlink():
                entry.rmdir()
            elif entry != new / MANIFEST_NAME:
                remove_file(entry)
        remove_file(new / MANIFEST_NAME)  # last: it shows that the rest is ours
        new.rmdir()
        sync(path)
    except OSError as error:
        raise writing_failed(new, error) from error


def move_in(path: Path) -> Manifest:
    """Put the whole artifact at `path`/.new in the place of the old one; only the latter's files go.

    Raises OutputConflict, before anything is touched, when a foreign file lies where a new one belongs.
    """
    new = path / NEW
    manifest = read_manifest(new)
    arriving = {record.path for record in manifest.files}
    if (new / REPLACED).exists():
        leaving = set(read_record(new / REPLACED, list[str], RESTORE, DamagedArtifact, LIST_LIMIT))
    else:
        leaving = _leaving(path, manifest.files)
        write_atomic(new / REPLACED, pretty_json(sorted(leaving)))
    empty = {"status": "incomplete", "files": [], "statistics": {}}
    write_manifest(path, manifest.model_copy(update=empty))
    try:
        for name in sorted(leaving - arriving):
            remove_file(path / name)
        remove_directory(path / SCRATCH)
        folders = {above for name in leaving for above in Path(name).parents}
        for folder in sorted(folders, reverse=True):
            place = path / folder
            if folder.parts and place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        for record in manifest.files:
            if (new / record.path).exists():
                make_directory((path / record.path).parent)
                move(new / record.path, path / record.path)
            check_size(path, record)
        for folder in {(path / name).parent for name in arriving}:
            sync(folder)
        move(new / MANIFEST_NAME, path / MANIFEST_NAME)
        sync(path)
    except OSError as error:
        raise writing_failed(path, error) from error
    remove(path)
    return manifest


def _leaving(path: Path, arriving: list[FileRecord]) -> set[str]:
    """The files of the old artifact at `path`, by relative name."""
    if not (path / MANIFEST_NAME).exists():
        return set()
    old = read_manifest(path)
    names = {record.path for record in old.files}
    if old.status == "incomplete":
        # what an unfinished one wrote and did not record yet
        for file in content_files(path):
            name = file.relative_to(path)
            if is_part(name) or name.parts[0] in (CHECKPOINTS, METRICS):
                names.add(name.as_posix())
        names |= {r.path for r in arriving if (path / r.path).is_file()}
    for record in arriving:
        refuse_link(path / record.path)
        file, *folders = (Path(record.path), *list(Path(record.path).parents)[:-1])
        blocked = [place for place in folders if (path / place).is_file()]
        blocked += [file] if os.path.lexists(path / file) else []
        for place in blocked:
            if place.as_posix() not in names:
                raise OutputConflict(
                    f"{path / place} is in the way of the new artifact and does not belong to the old one.",
                    "Move it away and run the same command again; nothing was touched.",
                )
    return names
