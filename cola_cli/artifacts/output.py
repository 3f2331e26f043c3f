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
    """The directory a stage writes to; its content is compared with the new identity before any change."""

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
        """Compare `path` with the artifact of this identity; nothing is written yet.

        Raises OutputConflict when it is a file, or holds foreign files or an artifact of another identity
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
        """The environment (threads and the like) of the interrupted run that is continued, or empty."""
        resumes = self._previous is not None and not self._overwrite
        return self._previous.environment if self._previous and resumes else {}

    @contextlib.contextmanager
    def writing(self, environment: dict[str, Any] | None = None) -> Iterator[Writer]:
        """Hold the lock and yield the writer; the manifest says `incomplete` until `finish`."""
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
        """The manifest found there; None also for an unfinished artifact that holds nothing yet."""
        previous = _previous_manifest(self.path)
        if previous is None or self._overwrite or previous.fingerprint == self.identity.fingerprint:
            return previous
        if previous.status == "incomplete" and not _begun(self.path):
            return None  # its run failed on its input at once; the corrected command may simply run
        listed = "; ".join(previous.identity.differences(self.identity))
        raise OutputConflict(
            f"{self.path} was made with other settings or inputs: {listed}.",
            "Choose another output directory, or give --overwrite to replace it.",
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
        """Record files that are whole, so that a run that continues an interrupted one keeps them.

        They are in `kept` from now on, and in that of the next run unless they are damaged meanwhile.
        """
        for name in names:
            path = self.path / name
            size, digest = path.stat().st_size, sha256_file(path)
            self.kept[name] = FileRecord(path=name, bytes=size, sha256=digest)
        self._record_kept()

    def discard(self, *names: str) -> None:
        """Remove files from the record that are about to be written again, perhaps by other processes."""
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

        Foreign files in the directory are left alone and not recorded.
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
    """Whether an unfinished artifact holds anything but the temporary files of a killed writer."""
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
    """The files that an interrupted run recorded beside its parts, without damaged ones."""
    intact = []
    for record in previous.files if previous is not None else []:
        with contextlib.suppress(DamagedArtifact):
            check_file(path, record)
            intact.append(record)
    return intact
