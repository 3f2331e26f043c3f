"""Reading and writing artifacts: what a stage sees of the files, digests and manifest on disk."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cola_cli.artifacts.files import (
    TEMPORARY,
    atomic_file,
    make_directory,
    refuse_link,
    remove_temporaries,
    sha256_bytes,
    sha256_file,
    write_atomic,
)
from cola_cli.artifacts.lock import LOCK_NAME, writer_lock
from cola_cli.artifacts.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Identity,
    Kind,
    Manifest,
    PartRecord,
    read_manifest,
    signed_json,
    write_manifest,
)
from cola_cli.artifacts.reading import parse_json, read_regular, reason, shown
from cola_cli.errors import DamagedArtifact, InputError, OutputConflict
from cola_cli.version import __version__

PARTS = "parts"
METRICS = "metrics.parquet"
RECORD_LIMIT = 64 << 20  # bytes
RESTORE = "Restore it from a copy, or run the stage again with --overwrite."
_PART = re.compile(r"\d{5,}\.(?!json$).+")  # the data of a part; other files are somebody else's


class Artifact:
    """A finished artifact, opened for reading. Every file is checked against its digest once."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._records = {record.path: record for record in manifest.files}
        self._checked: set[str] = set()
        self._parts: list[PartRecord] | None = None

    @classmethod
    def open(cls, path: Path | str, kind: Kind | None = None) -> Artifact:
        """Open the finished artifact at `path`.

        Raises InputError when it is none, is unfinished, or is of another kind.
        """
        directory = Path(path)
        manifest = read_manifest(directory)
        if kind is not None and manifest.kind != kind:
            raise InputError(
                f"{directory} is a {manifest.kind} artifact, but one of kind {kind} is needed here.",
                f"Name a {kind} artifact.",
            )
        if manifest.status != "complete":
            raise InputError(
                f"{directory} is not finished.",
                f"Run `cola {manifest.identity.stage}` on it again to complete it.",
            )
        return cls(directory, manifest)

    def has(self, name: str) -> bool:
        """Whether the artifact holds a file of that relative name."""
        return name in self._records

    def file(self, name: str) -> Path:
        """The path of a file of the artifact, its size and digest checked on first use."""
        record = self._records.get(name)
        if record is None:
            raise InputError(
                f"{self.path} has no file {name}.", "Name an artifact that a cola stage finished."
            )
        if name not in self._checked:
            check_file(self.path, record)
            self._checked.add(name)
        return self.path / name

    @property
    def parts(self) -> list[PartRecord]:
        """The records of the data parts, in order."""
        if self._parts is None:
            names = sorted(n for n in self._records if n.startswith(PARTS) and n.endswith(".json"))
            self._parts = [read_part_record(self.file(name)) for name in names]
            for index, (name, record) in enumerate(zip(names, self._parts, strict=True)):
                if record.index != index:
                    raise DamagedArtifact(
                        f"{self.path / name} is the record of part {record.index}, not of {index}.",
                        "Run the stage again with --overwrite.",
                    )
        return self._parts

    def part_file(self, index: int) -> Path:
        """The path of data part `index`, checked on first use."""
        return self.file(self.parts[index].file)


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
            f"{self.path} was made with other settings or inputs: {shown(listed, 4000)}.",
            "Choose another output directory, or give --overwrite to make it anew.",
        )


class PartWriter:
    """One data part being written: write the file at `path`, then set what its record says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.tokens = 0
        self.statistics: dict[str, Any] = {}


@contextlib.contextmanager
def write_part(
    directory: Path, index: int, source: str = "", suffix: str = ".parquet"
) -> Iterator[PartWriter]:
    """Write data part `index` of the artifact at `directory`; it exists once its record does.

    Needs no Writer, so that worker processes can call it for the one that holds the lock.
    """
    file = f"{PARTS}/{index:05d}{suffix}"
    refuse_link(directory / PARTS)
    with atomic_file(directory / file) as temporary:
        part = PartWriter(temporary)
        yield part
        size, digest = temporary.stat().st_size, sha256_file(temporary)
    record = PartRecord(
        index=index,
        file=file,
        rows=part.rows,
        tokens=part.tokens,
        bytes=size,
        sha256=digest,
        source=source,
        statistics=part.statistics,
    )
    write_atomic(directory / PARTS / f"{index:05d}.json", signed_json(record))


class Writer:
    """Writes the files of one artifact; made by `Output.writing`."""

    def __init__(self, path: Path, incomplete: Manifest) -> None:
        self.path = path
        self._manifest = incomplete
        self._started = time.monotonic()
        make_directory(path)
        self.parts = _intact_parts(path)
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


def check_size(directory: Path, record: FileRecord) -> None:
    """Raise DamagedArtifact when a recorded file is missing, leaves the artifact, or has another size."""
    path = directory / record.path
    try:
        if not path.resolve().is_relative_to(directory.resolve()):
            raise DamagedArtifact(f"{path} is a link that leaves the artifact.", RESTORE)
        if not path.is_file():
            raise DamagedArtifact(f"{path} is missing.", RESTORE)
        size = path.stat().st_size
    except (OSError, RuntimeError) as error:  # links in a circle are a RuntimeError
        raise DamagedArtifact(f"{path} cannot be read ({reason(error)}).", RESTORE) from error
    if size != record.bytes:
        raise DamagedArtifact(f"{path} has {size} bytes instead of {record.bytes}.", RESTORE)


def check_file(directory: Path, record: FileRecord) -> None:
    """Raise DamagedArtifact when a recorded file is missing or any byte of it differs."""
    check_size(directory, record)
    path = directory / record.path
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise DamagedArtifact(f"{path} cannot be read ({reason(error)}).", RESTORE) from error
    if digest != record.sha256:
        raise DamagedArtifact(f"{path} is damaged: its SHA-256 is not the recorded one.", RESTORE)


def read_part_record(path: Path) -> PartRecord:
    """Read and validate one `parts/00000.json`."""
    remedy = "Run the stage again with --overwrite."
    try:
        text = read_regular(path, RECORD_LIMIT)
        record = PartRecord.model_validate(parse_json(text))
        if record.digest and signed_json(record) != text:
            raise ValueError("its digest does not match its content")
        return record
    except ValidationError as error:
        wrong = f"{len(error.errors())} entries are wrong, the first: {error.errors()[0]['msg']}"
        raise DamagedArtifact(f"{path} is no part record ({shown(wrong)}).", remedy) from error
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"{path} is no part record ({reason(error)}).", remedy) from error


def file_digest(path: Path) -> str:
    """The content digest by which an input file enters an identity."""
    return sha256_file(path)


def text_digest(text: str) -> str:
    """The content digest by which an input text enters an identity."""
    return sha256_bytes(text.encode())


def content_files(directory: Path) -> Iterator[Path]:
    """Every file of an artifact but its manifest and its lock."""
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in (MANIFEST_NAME, LOCK_NAME):
            yield path


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


def recorded_parts(path: Path) -> dict[int, PartRecord]:
    """The part records that lie in an artifact, finished or not, by index."""
    records = (read_part_record(file) for file in sorted((path / PARTS).glob("*.json")))
    return {record.index: record for record in records}


def _intact_files(path: Path, previous: Manifest | None) -> list[FileRecord]:
    """What an interrupted run recorded beside its parts, without what is damaged by now."""
    intact = []
    for record in previous.files if previous is not None else []:
        with contextlib.suppress(DamagedArtifact):
            check_file(path, record)
            intact.append(record)
    return intact


def _intact_parts(path: Path) -> dict[int, PartRecord]:
    """The parts of an interrupted run that can be kept; damaged or unrecorded ones are removed."""
    kept: dict[int, PartRecord] = {}
    for file in sorted((path / PARTS).glob("*")):
        if file.is_dir():
            raise OutputConflict(
                f"{file} is a directory where a part belongs.", "Choose another output directory."
            )
    for file in sorted((path / PARTS).glob("*.json")):
        try:
            record = read_part_record(file)
            check_file(path, FileRecord(path=record.file, bytes=record.bytes, sha256=record.sha256))
            kept[record.index] = record
        except DamagedArtifact:
            file.unlink()
    recorded = {path / record.file for record in kept.values()}
    for file in (path / PARTS).glob("*"):
        if _PART.fullmatch(file.name) and file not in recorded:
            file.unlink()
    return kept
