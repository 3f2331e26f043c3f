"""Reading artifacts: what a stage sees of the files, digests and manifest on disk."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

from cola_cli.artifacts import mirror
from cola_cli.artifacts.checks import RESTORE, fetch_file
from cola_cli.artifacts.manifest import MANIFEST_NAME, Kind, Manifest, PartRecord, read_manifest
from cola_cli.artifacts.parts import PARTS, read_part_record, record_name
from cola_cli.errors import DamagedArtifact, InputError

METRICS = "metrics.parquet"


class Artifact:
    """A finished artifact, opened for reading. Every file is checked against its digest once."""

    kind: ClassVar[Kind | None] = None

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._records = {record.path: record for record in manifest.files}
        self._checked: set[str] = set()
        self._parts: dict[int, PartRecord] = {}

    @classmethod
    def open(cls, path: Path | str, kind: Kind | None = None) -> Self:
        """Open the finished artifact at `path`, of the class's kind where it has one, such as `Tokens`.

        Raises InputError when it is not an artifact, is unfinished, or is of another kind.
        """
        directory = Path(path)
        manifest = read_manifest(directory)
        kind = kind or cls.kind
        if kind is not None and manifest.kind != kind:
            raise InputError(
                f"{directory} is an artifact of kind {manifest.kind}, but one of kind {kind} is needed here.",
                f"Name an artifact of kind {kind}.",
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
        if name not in self._checked or not (self.path / name).exists():
            fetch_file(self.path, record)
            self._checked.add(name)
        return self.path / name

    def fetch_ahead(self, names: Iterable[str]) -> None:
        """Begin to fetch files that are read next, where the artifact lies in an object store."""
        mirror.fetch_ahead(self.path / name for name in names if name in self._records)

    @cached_property
    def part_count(self) -> int:
        """How many data parts there are; no record is read."""
        return sum(
            name.startswith(f"{PARTS}/") and name.endswith(".json") for name in self._records
        )

    def part(self, index: int) -> PartRecord:
        """The record of one data part, read and checked on first use."""
        if index not in self._parts:
            name = record_name(index)
            if name not in self._records:
                raise DamagedArtifact(f"{self.path} has no record of part {index}.", RESTORE)
            path = self.file(name)
            record = read_part_record(path)
            if record.index != index:
                raise DamagedArtifact(
                    f"{path} is the record of part {record.index}, not of {index}.", RESTORE
                )
            self._parts[index] = record
        return self._parts[index]

    @property
    def parts(self) -> list[PartRecord]:
        """The records of the data parts, in order."""
        self.fetch_ahead(map(record_name, range(self.part_count)))
        return [self.part(index) for index in range(self.part_count)]

    def part_file(self, index: int) -> Path:
        """The path of data part `index`, checked on first use."""
        return self.file(self.part(index).file)


def is_artifact(path: Path) -> bool:
    """Whether a directory is an artifact, finished or not."""
    return (path / MANIFEST_NAME).exists()
