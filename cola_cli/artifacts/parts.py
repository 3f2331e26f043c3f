"""Data parts of an artifact: `parts/00000.*`, which counts once its record `parts/00000.json` is there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from cola_cli.artifacts import mirror
from cola_cli.artifacts.checks import RESTORE, check_file
from cola_cli.artifacts.files import (
    TEMPORARY,
    atomic_file,
    refuse_link,
    remove_file,
    sha256_file,
    sync,
    write_atomic,
)
from cola_cli.artifacts.lock import STOPPED_SECONDS, Patience, locked
from cola_cli.artifacts.manifest import (
    PARTS_LIMIT,
    Identity,
    PartRecord,
    is_signed,
    read_manifest,
    signed_json,
)
from cola_cli.artifacts.reading import parse_record, read_file
from cola_cli.errors import DamagedArtifact, OutputConflict, OutputLocked, UsageError

PARTS = "parts"
ARTIFACT = "artifact"  # in the statistics of a part: fingerprint of the artifact it was made for
LOCK_SECONDS = 1.0  # to wait for the lock before the identity is looked at again
_PART = re.compile(r"\d{5,}\.(?!json$).+")  # the data of a part; other files are foreign
_PART_OR_RECORD = re.compile(r"\d{5,}\..+")


def is_part(name: PurePath) -> bool:
    """Whether a name relative to an artifact is that of a part or of the record of one."""
    return name.parts[:-1] == (PARTS,) and bool(_PART_OR_RECORD.fullmatch(name.name))


def record_name(index: int) -> str:
    """The record of a part, relative to its artifact."""
    return f"{PARTS}/{index:05d}.json"


@dataclass
class PartWriter:
    """One data part being written: write the file at `path`, then set what its record says."""

    path: Path
    rows: int = 0
    tokens: int = 0
    statistics: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def write_part(
    directory: Path,
    index: int,
    identity: Identity,
    source: str = "",
    suffix: str = ".parquet",
    shared: bool = False,
) -> Iterator[PartWriter]:
    """Write data part `index` of the artifact of that identity at `directory`; its record makes it exist.

    Needs no Writer: worker processes call it for the process that holds the lock. `shared`: several processes
    make parts of one artifact. Each takes the lock to add a part, and the part is not added when the artifact
    is finished, or raises OutputConflict when it is another one by now.
    """
    require_few(index + 1)
    file = f"{PARTS}/{index:05d}{suffix}"
    refuse_link(directory / PARTS)
    with contextlib.suppress(_Finished), contextlib.ExitStack() as adding:
        with atomic_file(directory / file) as temporary:
            part = PartWriter(temporary)
            yield part
            size, digest = temporary.stat().st_size, sha256_file(temporary)
            if shared:
                sync(temporary)  # the bulk of it while others hold the lock
                adding.enter_context(_adding(directory, identity))
        record = PartRecord(
            index=index,
            file=file,
            rows=part.rows,
            tokens=part.tokens,
            bytes=size,
            sha256=digest,
            source=source,
            statistics=part.statistics | {ARTIFACT: identity.fingerprint},
        )
        write_atomic(directory / record_name(index), signed_json(record))


def take_over(directory: Path, old: Path, record: PartRecord, identity: Identity) -> None:
    """Make a part of the artifact at `old` one of that of `identity` at `directory`: its bytes are linked."""
    check_file(old, record.data)
    refuse_link(directory / PARTS)
    with atomic_file(directory / record.file) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(old / record.file, temporary)
        except OSError:  # the file system has no hard links
            shutil.copyfile(old / record.file, temporary)
    own = record.statistics | {ARTIFACT: identity.fingerprint}
    taken = record.model_copy(update={"statistics": own})
    write_atomic(directory / record_name(record.index), signed_json(taken))


class _Finished(Exception):
    """The artifact was finished meanwhile, so that the part is not needed."""


@contextlib.contextmanager
def _adding(directory: Path, identity: Identity) -> Iterator[None]:
    """Hold the lock of the unfinished artifact of this identity."""
    stopped = Patience(STOPPED_SECONDS)
    while True:
        manifest = read_manifest(directory)
        if manifest.fingerprint != identity.fingerprint:
            listed = "; ".join(manifest.identity.differences(identity))
            raise OutputConflict(
                f"{directory} is now made with other settings or inputs: {listed}.",
                "Choose another output directory.",
            )
        try:
            with locked(directory, LOCK_SECONDS):
                manifest = read_manifest(directory)
                if manifest.fingerprint == identity.fingerprint:
                    if manifest.status == "complete":
                        raise _Finished
                    yield
                    return
        except OutputLocked as error:
            # another process adds a part, or makes all that are missing
            if stopped.is_over(error.stopped):
                raise


def read_part_record(path: Path) -> PartRecord:
    """Read and validate one `parts/00000.json`."""
    text = read_file(path, RESTORE, DamagedArtifact)
    record = parse_record(text, PartRecord, path, RESTORE, DamagedArtifact, "a part record")
    if record.digest and not is_signed(record, text):
        raise DamagedArtifact(
            f"{path} is not a part record (its digest does not match its content).", RESTORE
        )
    return record


def recorded_indices(path: Path) -> set[int]:
    """The parts that have a record, by its name: one listing, whatever they hold."""
    stems = (file.stem for file in (path / PARTS).glob("*.json") if file.stem.isdecimal())
    return {int(stem) for stem in stems if record_name(int(stem)) == f"{PARTS}/{stem}.json"}


def recorded_parts(path: Path) -> dict[int, PartRecord]:
    """The part records of an artifact, finished or not, by index and in order."""
    indices = sorted(recorded_indices(path))
    return {index: read_part_record(path / record_name(index)) for index in indices}


def require_few(parts: int) -> None:
    """Raise UsageError for more parts than a manifest can list."""
    if parts > PARTS_LIMIT:
        raise UsageError(
            f"the artifact would have {parts:,} parts or more; a manifest lists {PARTS_LIMIT:,}.",
            "Make larger ones: --set part_bytes=... of cola tokenize, or --set items_per_part=... of others.",
        )


def belongs(record: PartRecord, fingerprint: str) -> bool:
    """Whether a part was made for the artifact of that fingerprint, as far as its record says."""
    return record.statistics.get(ARTIFACT, fingerprint) == fingerprint


def intact_parts(path: Path, fingerprint: str) -> dict[int, PartRecord]:
    """The parts of an interrupted run that are whole; damaged, unrecorded and foreign ones are removed."""
    kept: dict[int, PartRecord] = {}
    for file in sorted((path / PARTS).glob("*")):
        if file.is_dir():
            raise OutputConflict(
                f"{file} is a directory where a part belongs.", "Choose another output directory."
            )
    for file in sorted((path / PARTS).glob("*.json")):
        try:
            record = read_part_record(file)
            check_file(path, record.data)
            if not belongs(record, fingerprint):
                raise DamagedArtifact(f"{file} is a part of another artifact.", RESTORE)
            kept[record.index] = record
        except DamagedArtifact:
            remove_file(file)
    recorded = {path / record.file for record in kept.values()}
    for file in [*(path / PARTS).glob("*"), *mirror.names_elsewhere(path / PARTS)]:
        temporary = TEMPORARY.search(file.name)  # perhaps of a process that makes a part now
        if _PART.fullmatch(file.name) and file not in recorded and not temporary:
            remove_file(file)
    return kept
