"""Reading artifacts: what a stage sees of the files, digests and manifest on disk."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from cola_cli.artifacts.checks import RESTORE, check_file
from cola_cli.artifacts.manifest import MANIFEST_NAME, Kind, Manifest, PartRecord, read_manifest
from cola_cli.artifacts.parts import PARTS, read_part_record
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
        self._parts: list[PartRecord] | None = None

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
                        RESTORE,
                    )
        return self._parts

    def part_file(self, index: int) -> Path:
        """The path of data part `index`, checked on first use."""
        return self.file(self.parts[index].file)


def is_artifact(path: Path) -> bool:
    """Whether a directory is an artifact, finished or not."""
    return (path / MANIFEST_NAME).exists()
