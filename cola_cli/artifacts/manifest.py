"""The manifest: what an artifact is, what it was made from, and the digest of every file in it."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cola_cli.artifacts.files import sha256_bytes, write_atomic
from cola_cli.artifacts.reading import parse_record, read_regular, reason
from cola_cli.errors import DamagedArtifact, InputError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
NEW = ".new"  # where the artifact is made that is to replace the one around it
MANIFEST_LIMIT = 256 << 20  # bytes. More is not a manifest.
PARTS_LIMIT = 800_000  # so that the manifest stays below: a part takes some 300 bytes of it
DEPTH_LIMIT = 64  # of settings and statistics
COUNT_LIMIT = 2**63 - 1
ROWS_LIMIT = 2**31 - 1  # of one part

# tokens, vae, latents ...: which kinds of model there are is not for an artifact to know
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def canonical_json(value: Any) -> bytes:
    """The canonical JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _inside_the_artifact(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise ValueError(f"path {path!r} leaves the artifact")
    if str(pure) != path or path == ".":
        raise ValueError(f"path {path!r} is not normalised")
    if not path.isprintable() or max(len(os.fsencode(part)) for part in pure.parts) > 255:
        raise ValueError(f"path {path!r} is not a file name")
    return path


def require_shallow(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree itself. Raises ValueError when it nests deeper than anything cola writes."""
    level: list[Any] = [tree]
    for _ in range(DEPTH_LIMIT):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return tree
    raise ValueError(f"it nests deeper than {DEPTH_LIMIT} levels")


RelativePath = Annotated[str, AfterValidator(_inside_the_artifact)]
Tree = Annotated[dict[str, Any], AfterValidator(require_shallow)]


class _Source(BaseModel):
    """What is known of a file of a corpus."""

    bytes: int
    modified: int | None
    sha256: Digest
    added: int = 1


class _Read(BaseModel):
    """What later runs read of an environment; the rest is for people."""

    threads: int = Field(1, ge=1, le=4096)
    share_tokens: int = Field(0, ge=0, le=COUNT_LIMIT)
    fetched: list[str] = []
    corpus: dict[str, _Source] = {}


def _require_readable(tree: dict[str, Any]) -> dict[str, Any]:
    try:
        _Read.model_validate(tree, strict=True)
    except ValidationError as error:
        raise ValueError(reason(error)) from None
    return tree


Environment = Annotated[Tree, AfterValidator(_require_readable)]
Count = Annotated[int, Field(ge=0, le=COUNT_LIMIT)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Identity(_Record):
    """Everything that decides the content of an artifact: stage, settings that change the result, inputs.

    `inputs` maps the name of each input to its fingerprint (an artifact) or content digest (a file).
    """

    # shown in commands to type, so nothing that a shell would act on
    stage: Annotated[str, Field(pattern=r"^[a-z][a-z0-9 _-]{0,63}$")]
    format_version: int = FORMAT_VERSION
    settings: Tree
    inputs: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of the identity."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json")))

    def differences(self, other: Identity) -> list[str]:
        """One line for every setting or input that differs: `name: old -> new`, self being the old."""
        old, new = self._flat(), other._flat()
        return [
            f"{name}: {_shown(old, name)} -> {_shown(new, name)}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]

    def _flat(self) -> dict[str, Any]:
        flat: dict[str, Any] = {"stage": self.stage, "format version": self.format_version}
        flat.update(flatten(self.settings))
        flat.update({f"input {name}": digest for name, digest in self.inputs.items()})
        return flat


class FileRecord(_Record):
    """One file of an artifact."""

    path: RelativePath
    bytes: Count
    sha256: Digest


class PartRecord(_Record):
    """The record `parts/00000.json` of one data part."""

    index: int = Field(ge=0)
    file: RelativePath
    rows: int = Field(ge=0, le=ROWS_LIMIT)
    tokens: Count
    bytes: Count
    sha256: Digest
    source: str = ""
    statistics: Tree = {}
    digest: str = ""  # as in a manifest, which has this file's digest as well once it is complete

    @property
    def data(self) -> FileRecord:
        """The record of the part's own file."""
        return FileRecord(path=self.file, bytes=self.bytes, sha256=self.sha256)


class Manifest(_Record):
    """`manifest.json`. An artifact is finished when this file says `"status": "complete"`."""

    format: Literal["cola-artifact"] = "cola-artifact"
    format_version: int = FORMAT_VERSION
    kind: Kind
    status: Literal["incomplete", "complete"]
    identity: Identity
    fingerprint: Digest
    settings: Tree = {}
    statistics: Tree = {}
    environment: Environment = {}
    files: list[FileRecord] = []
    cola_version: str = ""
    seconds: float = 0.0
    digest: str = ""

    def to_bytes(self) -> bytes:
        """The file's exact content. `digest` is the SHA-256 of that content with an empty `digest`."""
        return signed_json(self)


def signed_json(record: BaseModel) -> bytes:
    """A record as JSON, its `digest` the SHA-256 of the same text with an empty one."""
    unsigned = pretty_json(record.model_copy(update={"digest": ""}).model_dump(mode="json"))
    # only a key of the record itself follows a line break and two spaces
    signed = b'\n  "digest": "%s"' % sha256_bytes(unsigned).encode()
    return unsigned.replace(b'\n  "digest": ""', signed)


def is_signed(record: BaseModel, text: bytes) -> bool:
    """Whether a file has, byte for byte, the content that `signed_json` gives this record."""
    try:
        return signed_json(record) == text
    except ValueError:  # it holds NaN
        return False


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables to dotted names: {"train": {"steps": 60}} -> {"train.steps": 60}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _shown(flat: dict[str, Any], name: str) -> str:
    if name not in flat:
        return "(none)"
    value = flat[name]
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    return json.dumps(value, ensure_ascii=False)


def read_manifest(directory: Path) -> Manifest:
    """Read and validate the manifest of the artifact at `directory`.

    Raises InputError when it is missing or of a newer format, DamagedArtifact when it is not, byte for
    byte, a manifest that cola wrote.
    """
    path = directory / MANIFEST_NAME
    remedy = "Restore it from a copy, or remove the directory and run the stage again."
    try:
        text = read_regular(path, MANIFEST_LIMIT)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{directory} is not an artifact: it has no {MANIFEST_NAME}.",
            "Name a directory that a cola stage wrote.",
        ) from error
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"{path} cannot be read ({reason(error)}).", remedy) from error
    what = "a valid manifest"
    version = parse_record(text, _Versioned, path, remedy, DamagedArtifact, what).format_version
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}; this cola reads up to {FORMAT_VERSION}.",
            "Install a newer cola to use it.",
        )
    manifest = parse_record(text, Manifest, path, remedy, DamagedArtifact, what)
    if not is_signed(manifest, text) or manifest.identity.fingerprint != manifest.fingerprint:
        raise DamagedArtifact(f"{path} is damaged: its digest does not match its content.", remedy)
    return manifest


class _Versioned(BaseModel):
    """What can be read of a manifest of any format."""

    format_version: Any = None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically."""
    write_atomic(directory / MANIFEST_NAME, manifest.to_bytes())


def pretty_json(value: Any) -> bytes:
    """JSON for people: indented, keys in the order given, newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
