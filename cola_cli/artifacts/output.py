"""Writing artifacts: a finished one of the same identity is left as it is, an unfinished one is continued."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cola_cli.artifacts import replacement
from cola_cli.artifacts.artifact import Artifact
from cola_cli.artifacts.checks import check_file, check_size, content_files
from cola_cli.artifacts.files import (
    TEMPORARY,
    atomic_file,
    make_directory,
    remove_directory,
    remove_temporaries,
    sha256_file,
)
from cola_cli.artifacts.lock import LOCK_NAME, locked, writer_lock
from cola_cli.artifacts.manifest import (
    MANIFEST_NAME,
    NEW,
    FileRecord,
    Identity,
    Kind,
    Manifest,
    PartRecord,
    read_manifest,
    write_manifest,
)
from cola_cli.artifacts.mirror import SCRATCH
from cola_cli.artifacts.origin import published
from cola_cli.artifacts.parts import (
    PartWriter,
    intact_parts,
    read_part_record,
    record_name,
    recorded_indices,
    take_over,
    write_part,
)
from cola_cli.artifacts.places import require_apart
from cola_cli.errors import ColaError, DamagedArtifact, Interrupted, OutputConflict
from cola_cli.version import __version__


class Output:
    """The directory a stage writes to; its content is compared with the new identity before any change."""

    def __init__(
        self,
        path: Path,
        kind: Kind,
        identity: Identity,
        settings: dict[str, Any],
        overwrite: bool,
        ways: str = "",
    ) -> None:
        self.path = path
        self.kind: Kind = kind
        self.identity = identity
        self.settings = settings
        self.fetched: list[str] = []  # addresses of inputs that came from a hub, with their commits
        self._overwrite = overwrite
        self._ways = ways
        self._previous = self._look()
        self.place = self._chosen_place()

    @classmethod
    def open(
        cls,
        path: Path | str,
        kind: Kind,
        identity: Identity,
        settings: dict[str, Any] | None = None,
        overwrite: bool = False,
        reads: Iterable[Path] = (),
        ways: str = "",
    ) -> Output:
        """Compare `path` with the artifact of this identity; nothing is written yet.

        reads: every file and directory that the stage reads. ways: what a message advises besides. The
        artifact grows at `place`: `path`, or with `overwrite` a directory within it, until it is whole and
        takes the place of the old one.
        Raises UsageError when `path` is, lies in or holds one of `reads`; OutputConflict when it is a
        file, or holds foreign files or an artifact of another identity (unless `overwrite`); the message
        names every differing setting and input, old -> new.
        """
        reads = list(reads)
        require_apart(Path(path), reads)
        output = cls(Path(path), kind, identity, settings or {}, overwrite, ways)
        output.fetched = list(dict.fromkeys(filter(None, map(published, reads))))
        return output

    @property
    def up_to_date(self) -> bool:
        """Whether the finished artifact of this identity already lies there, whole by its file sizes."""
        previous = self._previous
        if previous is None or previous.status != "complete" or self._overwrite:
            return False
        for record in previous.files:
            check_size(self.path, record)
        return True

    def tidy(self) -> None:
        """Remove what is left of a move that was cut off at its very end, unless somebody writes there."""
        if (self.path / NEW).is_dir():
            with contextlib.suppress(ColaError), locked(self.path):
                if not (self.path / NEW / MANIFEST_NAME).exists() or replacement.moved(self.path):
                    replacement.remove(self.path)

    @property
    def recorded_environment(self) -> dict[str, Any]:
        """The environment (threads and the like) of the interrupted run that is continued, or empty."""
        begun = None if self._overwrite else self._previous
        if self.place != self.path:
            begun = replacement.begun(self.path, self.identity.fingerprint)
        return {} if begun is None else begun.environment

    @contextlib.contextmanager
    def writing(
        self, environment: dict[str, Any] | None = None, held: bool = False
    ) -> Iterator[Writer]:
        """Hold the lock and yield the writer; the manifest says `incomplete` until `finish`.

        held: the caller has the lock already.
        """
        lock = contextlib.nullcontext() if held else writer_lock(self.path)
        with lock, telling_what_is_saved(self.place):
            # Another process may have finished between our first look and the lock.
            seen, self._previous = self._previous, self._look()
            another = self._overwrite and _described(seen) != _described(self._previous)
            if another or self._chosen_place() != self.place:
                raise OutputConflict(
                    f"{self.path} was changed by another process meanwhile.",
                    "Run the command again.",
                )
            remove_temporaries(self.path)
            if replacement.moving(self.path) or (self._replaced_by_own() and self._wanted()):
                replacement.move_in(self.path)
                self._previous = self._look()
            before = self._previous
            if self.place != self.path:
                before = replacement.continued(self.path, self.identity.fingerprint)
            incomplete = Manifest(
                kind=self.kind,
                status="incomplete",
                identity=self.identity,
                fingerprint=self.identity.fingerprint,
                settings=self.settings,
                environment=(environment or {})
                | ({"fetched": self.fetched} if self.fetched else {}),
                cola_version=__version__,
                files=_intact_files(self.place, before),
            )
            make_directory(self.place)
            write_manifest(self.place, incomplete)
            try:
                yield Writer(self.place, incomplete, self.path)
            except BaseException:
                if self.place != self.path and not _begun(self.place):
                    replacement.remove(self.path)
                raise

    def _chosen_place(self) -> Path:
        """Where the artifact grows: beside the old one, if there is something that is to be replaced."""
        previous = self._previous
        if not self._overwrite or previous is None or self._replaced_by_own():
            return self.path
        empty = previous.status == "incomplete" and not _begun(self.path)
        return self.path if empty else self.path / NEW

    def _replaced_by_own(self) -> bool:
        """Whether the whole artifact of this identity lies there and waits to replace the old one."""
        new = replacement.begun(self.path, self.identity.fingerprint)
        return new is not None and new.status == "complete"

    def _wanted(self) -> bool:
        """Whether this command, or the one that made the new artifact, asked that it replace the old one."""
        previous = self._previous
        same = previous is None or previous.fingerprint == self.identity.fingerprint
        return self._overwrite or same

    def _look(self) -> Manifest | None:
        """The manifest found there; None also for an unfinished artifact that holds nothing yet."""
        previous = _previous_manifest(self.path)
        if previous is None or self._overwrite or previous.fingerprint == self.identity.fingerprint:
            return previous
        if previous.status == "incomplete" and not _begun(self.path):
            return None  # its run failed at once on its input; the corrected command may run
        listed = "; ".join(previous.identity.differences(self.identity))
        raise OutputConflict(
            f"{self.path} was made with other settings or inputs: {listed}.",
            f"Choose another output directory, or give --overwrite to replace it.{self._ways}",
        )


@contextlib.contextmanager
def telling_what_is_saved(path: Path) -> Iterator[None]:
    """An interruption within says whether the unfinished artifact at `path` holds anything to go on from."""
    try:
        yield
    except Interrupted as interruption:
        interruption.saved = interruption.saved or _begun(path)
        raise


class Writer:
    """Writes the files of one artifact at `path`; made by `Output.writing`."""

    def __init__(self, path: Path, incomplete: Manifest, final: Path) -> None:
        self.path = path
        self._final = final
        self._manifest = incomplete
        self._started = time.monotonic()
        make_directory(path)
        self.parts = intact_parts(path, incomplete.fingerprint)
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
        with write_part(self.path, index, self._manifest.identity, source, suffix) as part:
            yield part
        self.parts[index] = read_part_record(self.path / record_name(index))

    def recorded(self) -> list[PartRecord]:
        """The records of all parts that are there now, those of other processes too, in order."""
        for index in recorded_indices(self.path) - self.parts.keys():
            self.parts[index] = read_part_record(self.path / record_name(index))
        return [self.parts[index] for index in sorted(self.parts)]

    def take_over(self, old: Artifact) -> None:
        """Have all parts of a finished artifact that are missing here, byte for byte.

        `old` is that which this one will replace; if it has done so already, everything is here.
        """
        for record in old.parts if self.path != self._final else ():
            if record.index not in self.parts:
                take_over(self.path, old.path, record, self._manifest.identity)
                self.parts[record.index] = record

    def finish(self, statistics: dict[str, Any] | None = None) -> Manifest:
        """Record every part and file with its digest and commit the artifact as complete.

        Foreign files in the directory are left alone and not recorded.
        """
        remove_temporaries(self.path)
        remove_directory(self.path / SCRATCH)
        files = {record.path: record for record in self.kept.values()}
        for part in self.recorded():
            files[part.file] = part.data
            self._own.add(record_name(part.index))
        for name in self._own - files.keys():
            path = self.path / name
            size, digest = path.stat().st_size, sha256_file(path)
            files[name] = FileRecord(path=name, bytes=size, sha256=digest)
        complete = self._manifest.model_copy(
            update={
                "status": "complete",
                "statistics": statistics or {},
                "files": [files[name] for name in sorted(files)],
                "seconds": round(time.monotonic() - self._started, 3),
            }
        )
        write_manifest(self.path, complete)
        if self._final != self.path:
            replacement.move_in(self._final)
        return complete


def _previous_manifest(path: Path) -> Manifest | None:
    if not path.exists():
        return None
    if not path.is_dir():
        raise OutputConflict(f"{path} is a file.", "Name a directory for the output.")
    if (path / MANIFEST_NAME).exists():
        return read_manifest(path)
    foreign = [
        p.name
        for p in path.iterdir()
        if p.name not in (LOCK_NAME, NEW) and not TEMPORARY.search(p.name)
    ]
    if foreign:
        raise OutputConflict(
            f"{path} is not empty and is not an artifact (it holds {sorted(foreign)[0]}).",
            "Choose another output directory; nothing was touched.",
        )
    return None


def _described(manifest: Manifest | None) -> tuple[str, str] | None:
    return (manifest.fingerprint, manifest.status) if manifest else None


def _begun(path: Path) -> bool:
    """Whether an unfinished artifact holds anything but the temporary files of a killed writer."""
    return any(not TEMPORARY.search(file.name) for file in content_files(path))


def _intact_files(path: Path, previous: Manifest | None) -> list[FileRecord]:
    """The files that an interrupted run recorded beside its parts, without damaged ones."""
    intact = []
    for record in previous.files if previous is not None else []:
        with contextlib.suppress(DamagedArtifact):
            check_file(path, record)
            intact.append(record)
    return intact
