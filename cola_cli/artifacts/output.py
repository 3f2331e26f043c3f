"""Writing artifacts: a finished one of the same identity is left as it is, an unfinished one is continued."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_cli.artifacts.checks import check_file, check_size, content_files
from cola_cli.artifacts.files import (
    TEMPORARY,
    atomic_file,
    make_directory,
    remove_temporaries,
    sha256_file,
)
from cola_cli.artifacts.lock import LOCK_NAME, writer_lock
from cola_cli.artifacts.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Identity,
    Kind,
    Manifest,
    read_manifest,
    write_manifest,
)
from cola_cli.artifacts.parts import (
    PARTS,
    PartWriter,
    intact_parts,
    read_part_record,
    recorded_parts,
    write_part,
)
from cola_cli.errors import DamagedArtifact, OutputConflict
from cola_cli.version import __version__


class Output:
    """Where a stage writes. Compares what lies there with what is to be made before anything is touched."""

    def __init__(
        self, path: Path, kind: Kind, identity: Identity, settings: dict[str, Any], overwrite: bool
    ) -> None:
        self.path = path
        self.kind: Kind = kind
        self.identity = identity
        self.settings = settings
        self._overwrite = overwrite
        self._previous = self._look()

    @classmethod
    def open(
        cls,
        path: Path | str,
        kind: Kind,
        identity: Identity,
        settings: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Output:
        """Look at `path` as the place for an artifact of this identity; nothing is written yet.

        Raises OutputConflict when it is a file, holds foreign files, or an artifact of another identity
        (unless `overwrite`); the message names every differing setting and input, old -> new.
        """
        return cls(Path(path), kind, identity, settings or {}, overwrite)

    @property
    def up_to_date(self) -> bool:
        """Whether the finished artifact of this identity already lies there, whole by its file sizes."""
        previous = self._previous
        if previous is None or previous.status != "complete" or self._overwrite:
            return False
        for record in previous.files:
            check_size(self.path, record)
        return True

    @property
    def recorded_environment(self) -> dict[str, Any]:
        """What an interrupted run recorded of its environment (threads and the like); empty if none."""
        resumes = self._previous is not None and not self._overwrite
        return self._previous.environment if self._previous and resumes else {}

    @contextlib.contextmanager
    def writing(self, environment: dict[str, Any] | None = None) -> Iterator[Writer]:
        """Hold the lock and give the writer; the manifest says `incomplete` until `finish`."""
        with writer_lock(self.path):
            # Another process may have finished between our first look and the lock.
            self._previous = self._look()
            remove_temporaries(self.path)
            if self._previous is not None and self._overwrite:
                _clear(self.path, self._previous)
                self._previous = None
            incomplete = Manifest(
                kind=self.kind,
                status="incomplete",
                identity=self.identity,
                fingerprint=self.identity.fingerprint,
                settings=self.settings,
                environment=environment or {},
                cola_version=__version__,
                files=_intact_files(self.path, self._previous),
            )
            write_manifest(self.path, incomplete)
            yield Writer(self.path, incomplete)

    def _look(self) -> Manifest | None:
        """The manifest that lies there; None also for one that was begun and has nothing to lose."""
        previous = _previous_manifest(self.path)
        if previous is None or self._overwrite or previous.fingerprint == self.identity.fingerprint:
            return previous
        if previous.status == "incomplete" and not _begun(self.path):
            return None  # of a run that failed on its input at once: corrected, it may simply be run again
        listed = "; ".join(previous.identity.differences(self.identity))
        raise OutputConflict(
            f"{self.path} was made with other settings or inputs: {listed}.",
            "Choose another output directory, or give --overwrite to make it anew.",
        )


class Writer:
    """Writes the files of one artifact; made by `Output.writing`."""

    def __init__(self, path: Path, incomplete: Manifest) -> None:
        self.path = path
        self._manifest = incomplete
        self._started = time.monotonic()
        make_directory(path)
        self.parts = intact_parts(path)
        self.kept = {record.path: record for record in incomplete.files}
        self._own: set[str] = set()

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Write one file atomically through the temporary path given."""
        self.kept.pop(name, None)
        with atomic_file(self.path / name) as temporary:
            yield temporary
        self._own.add(name)

    def write(self, name: str, data: bytes) -> None:
        """Write one small file atomically."""
        with self.file(name) as temporary:
            temporary.write_bytes(data)

    def keep(self, *names: str) -> None:
        """Record files that are whole, so that a run that is interrupted later need not make them again.

        They stand in `kept` from now on, and of the next run unless they are damaged meanwhile.
        """
        for name in names:
            path = self.path / name
            size, digest = path.stat().st_size, sha256_file(path)
            self.kept[name] = FileRecord(path=name, bytes=size, sha256=digest)
        self._record_kept()

    def discard(self, *names: str) -> None:
        """Take files out of the record that are going to be written anew, not by this writer alone."""
        if self.kept.keys() & {*names}:
            self.kept = {name: kept for name, kept in self.kept.items() if name not in names}
            self._record_kept()

    def _record_kept(self) -> None:
        files = [self.kept[name] for name in sorted(self.kept)]
        self._manifest = self._manifest.model_copy(update={"files": files})
        write_manifest(self.path, self._manifest)

    @contextlib.contextmanager
    def part(self, index: int, source: str = "", suffix: str = ".parquet") -> Iterator[PartWriter]:
        """Write data part `index`; see `write_part`."""
        with write_part(self.path, index, source, suffix) as part:
            yield part
        self.parts[index] = read_part_record(self.path / PARTS / f"{index:05d}.json")

    def finish(self, statistics: dict[str, Any] | None = None) -> Manifest:
        """Record every part and file with its digest and commit the artifact as complete.

        A file that somebody else put into the directory is left alone and not recorded.
        """
        remove_temporaries(self.path)
        digests = {name: record.sha256 for name, record in self.kept.items()}
        for part in recorded_parts(self.path).values():
            digests[part.file] = part.sha256
            self._own.add(f"{PARTS}/{part.index:05d}.json")
        files = []
        for name in sorted(self._own | digests.keys()):
            path = self.path / name
            digest = digests.get(name) or sha256_file(path)
            files.append(FileRecord(path=name, bytes=path.stat().st_size, sha256=digest))
        complete = self._manifest.model_copy(
            update={
                "status": "complete",
                "statistics": statistics or {},
                "files": files,
                "seconds": round(time.monotonic() - self._started, 3),
            }
        )
        write_manifest(self.path, complete)
        return complete


def _previous_manifest(path: Path) -> Manifest | None:
    if not path.exists():
        return None
    if not path.is_dir():
        raise OutputConflict(f"{path} is a file.", "Name a directory for the output.")
    if (path / MANIFEST_NAME).exists():
        return read_manifest(path)
    foreign = [
        p.name for p in path.iterdir() if p.name != LOCK_NAME and not TEMPORARY.search(p.name)
    ]
    if foreign:
        raise OutputConflict(
            f"{path} is not empty and is not an artifact (it holds {sorted(foreign)[0]}).",
            "Choose another output directory; nothing was touched.",
        )
    return None


def _begun(path: Path) -> bool:
    """Whether an unfinished artifact holds anything but what a killed writer left behind."""
    return any(not TEMPORARY.search(file.name) for file in content_files(path))


def _clear(path: Path, previous: Manifest) -> None:
    # The old manifest is marked incomplete first and replaced last: a kill in between leaves an
    # unfinished artifact of the old identity, never old parts under a new identity.
    write_manifest(path, previous.model_copy(update={"status": "incomplete", "files": []}))
    for file in list(content_files(path)):
        file.unlink()
    for directory in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        directory.rmdir()


def _intact_files(path: Path, previous: Manifest | None) -> list[FileRecord]:
    """What an interrupted run recorded beside its parts, without what is damaged by now."""
    intact = []
    for record in previous.files if previous is not None else []:
        with contextlib.suppress(DamagedArtifact):
            check_file(path, record)
            intact.append(record)
    return intact
