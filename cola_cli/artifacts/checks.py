"""Checks of the files of an artifact against the sizes and digests in its manifest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from cola_cli.artifacts import mirror
from cola_cli.artifacts.files import sha256_file
from cola_cli.artifacts.lock import LOCK_NAME
from cola_cli.artifacts.manifest import MANIFEST_NAME, NEW, FileRecord
from cola_cli.artifacts.mirror import SCRATCH
from cola_cli.artifacts.origin import stays_home
from cola_cli.artifacts.reading import reason
from cola_cli.artifacts.stores import address_of
from cola_cli.errors import DamagedArtifact

RESTORE = (
    "Restore it from a copy, or drop what `cola verify --repair` finds damaged and run the command that made"
    " that artifact again."
)


def check_size(directory: Path, record: FileRecord) -> None:
    """Raise DamagedArtifact when a recorded file is missing, leaves the artifact, or has another size."""
    path = directory / record.path
    try:
        size = mirror.elsewhere(path)
        if size is None and not stays_home(path, directory):
            raise DamagedArtifact(f"{path} is a link that leaves the artifact.", RESTORE)
        if size is None and not path.is_file():
            raise DamagedArtifact(f"{path} is missing.", RESTORE)
        size = path.stat().st_size if size is None else size
    except (OSError, RuntimeError) as error:  # links in a circle are a RuntimeError
        raise DamagedArtifact(f"{path} cannot be read ({reason(error)}).", RESTORE) from error
    if size != record.bytes:
        raise DamagedArtifact(f"{path} has {size} bytes instead of {record.bytes}.", RESTORE)


def check_file(directory: Path, record: FileRecord) -> None:
    """Raise DamagedArtifact when a recorded file is missing or any byte of it differs.

    Of a file that lies in an object store alone the size is compared: it was put there whole.
    """
    check_size(directory, record)
    path = directory / record.path
    if mirror.elsewhere(path) is not None:
        return
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise DamagedArtifact(f"{path} cannot be read ({reason(error)}).", RESTORE) from error
    if digest != record.sha256:
        raise DamagedArtifact(f"{path} is damaged: its SHA-256 is not the recorded one.", RESTORE)


def fetch_file(directory: Path, record: FileRecord) -> None:
    """`check_file` of what is to be read: it is here afterwards, fetched once more if its copy is damaged."""
    path = mirror.arrived(directory / record.path)
    try:
        check_file(directory, record)
    except DamagedArtifact:
        if address_of(path) is None:
            raise
        mirror.fetch(path, again=True)
        check_file(directory, record)


def content_files(directory: Path) -> Iterator[Path]:
    """Every file of an artifact but its manifest, its lock, its scratch, and what is to replace it."""
    elsewhere = mirror.names_elsewhere(directory)
    here = (path for path in directory.rglob("*") if path.is_file())
    for path in itertools.chain(here, elsewhere):
        name = path.relative_to(directory).as_posix()
        if name not in (MANIFEST_NAME, LOCK_NAME) and not name.startswith(
            (f"{NEW}/", f"{SCRATCH}/")
        ):
            yield path
