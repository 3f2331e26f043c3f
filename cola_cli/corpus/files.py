"""Corpus files: on disk, or at URLs that pyarrow (s3, hdfs), obstore (gs, az) or fsspec opens."""

from __future__ import annotations

import errno
import fnmatch
import glob
import importlib.util
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from cola_cli.artifacts import stores
from cola_cli.artifacts.files import sha256_stream
from cola_cli.artifacts.manifest import MANIFEST_NAME
from cola_cli.artifacts.parts import PARTS
from cola_cli.artifacts.reading import reason, shown
from cola_cli.errors import InputError, is_encodable

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

FORMATS = (".txt", ".md", ".jsonl", ".csv", ".parquet")
PACKED = (".gz", ".zst")
READ_BYTES = 1 << 20
HUB = "hf://"
AT_COMMIT = re.compile(rf"{HUB}[^@]+@[0-9a-f]{{40}}/")
URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
MANIFEST_START = b'"format": "cola-artifact"'  # within the first bytes of every manifest
KINDS_SHOWN = 8


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus, named as messages name it."""

    name: str
    filesystem: FileSystem | None = field(default=None, compare=False)  # None: on disk
    path: str = field(default="", compare=False)  # within the file system

    def __str__(self) -> str:
        return self.name

    @property
    def is_pinned(self) -> bool:
        """Whether what has this name never changes: it names a commit of a hub."""
        return AT_COMMIT.match(self.name) is not None

    def state(self) -> tuple[int, int | None]:
        """Its bytes, and the time of its last change in nanoseconds where that is known."""
        if self.filesystem is None:
            status = Path(self.name).stat()
            return status.st_size, status.st_mtime_ns
        info = self.filesystem.get_file_info(self.path)
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.name)
        return info.size, info.mtime_ns if info.mtime else None

    def open(self, digest: Any = None, start: int = 0) -> BinaryIO:
        """Its bytes as they lie there, to the last; `start`, of a file on disk, is the first.

        `digest` (of hashlib) is updated with what was read.
        """
        raw: Any
        if self.filesystem is None:
            raw = open(self.name, "rb", buffering=0)  # noqa: SIM115
            raw.seek(start)
        else:
            raw = self.filesystem.open_input_stream(self.path, compression=None)
        return io.BufferedReader(_Digested(raw, digest), READ_BYTES)

    def open_parquet(self) -> Any:
        """A file that pyarrow reads Parquet from: it takes names for URIs and expands ~."""
        if self.filesystem is None:
            return open(self.name, "rb")
        return self.filesystem.open_input_file(self.path)

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of its bytes."""
        with self.open() as stream:
            return sha256_stream(stream)


class _Digested(io.RawIOBase):
    """A stream that updates a digest with what was read of it."""

    def __init__(self, raw: Any, digest: Any) -> None:
        self._raw = raw
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._raw.readinto(buffer)
        if self._digest is not None:
            self._digest.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def file_format(name: object) -> str | None:
    """The format suffix of a corpus file, without its packing; None for a file of another kind."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(str(name)).suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


@dataclass
class LeftOut:
    """Files and folders within the folders of a corpus that are not read.

    artifacts: folders that cola wrote; hidden: files and folders whose names begin with a dot; kinds: files
    without a format that can be read, by their suffixes.
    """

    artifacts: set[str] = field(default_factory=set)
    hidden: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """How many of each, without those that do not occur."""
        found = {"artifacts": len(self.artifacts), "hidden": self.hidden}
        found["other_files"] = self.kinds.total()
        return {name: count for name, count in found.items() if count}

    def __str__(self) -> str:
        parts = []
        if self.artifacts:
            names = ", ".join(sorted(self.artifacts))
            parts.append(f"{len(self.artifacts)} folders that cola wrote ({shown(names)})")
        if self.hidden:
            parts.append(f"{self.hidden} hidden files or folders")
        if self.kinds:
            common = [kind for kind, _ in self.kinds.most_common(KINDS_SHOWN)]
            more = ", ..." if len(self.kinds) > KINDS_SHOWN else ""
            parts.append(
                f"{self.kinds.total()} files of other kinds ({shown(', '.join(common))}{more})"
            )
        return "; ".join(parts)


def find_files(
    names: list[str], output: Path | None = None, left_out: LeftOut | None = None
) -> list[CorpusFile]:
    """The corpus files that files, folders, patterns and URLs name, without repetition, in a stable order.

    Linked folders are followed, but not into a folder that they lie in. Hidden files, files of other kinds
    and folders that cola wrote are left out, and counted in `left_out`; `output`, where the tokens will lie,
    is passed over. Raises InputError for a name that yields nothing, a named file of an
    unknown kind, and a file name that is not UTF-8.
    """
    left_out = LeftOut() if left_out is None else left_out
    if not names or "" in names:  # of an empty text, Path would make the current folder
        raise InputError(
            "a name of the corpus is empty." if names else "the corpus names no files.",
            "Is a variable in the command empty? Write . for this folder.",
        )
    own = os.path.realpath(output) if output is not None else ""
    found: dict[CorpusFile, None] = {}
    for name in names:
        matches = _behind(name, left_out) if URL.match(name) else _on_disk(name, own, left_out)
        if not matches:
            raise InputError(
                f"{name} matches no corpus file{f' (left out: {left_out})' if str(left_out) else ''}.",
                _remedy(name),
            )
        for match in matches:
            if not is_encodable(match.name):
                raise InputError(f"the file name {match} is not UTF-8.", "Rename the file.")
            if not file_format(match):
                suffixes = "".join(PurePosixPath(match.name).suffixes) or "no suffix"
                raise InputError(
                    f"{match} is not of a known kind ({suffixes}).",
                    f"Rename or convert it to one of {' '.join(FORMATS)}.",
                )
            found[match] = None
    return list(found)


def _remedy(name: str) -> str:
    kinds = " ".join(FORMATS)
    remedy = f"Give files, folders or patterns of {kinds} files, plain, .gz or .zst."
    return f"{remedy} In a pattern, write [[] for the character [." if "[" in name else remedy


def _on_disk(name: str, own: str, left_out: LeftOut) -> list[CorpusFile]:
    path = Path(name)
    if path.is_file():
        return [CorpusFile(str(path))]
    if path.is_dir():
        if _is_artifact(path) or _holds_parts(path):
            raise InputError(
                f"{name} is an artifact that cola wrote, not a corpus.",
                "Give the texts that it was made from, or single files of it if you mean them.",
            )
        paths = [p for p in _walk(path, own, left_out) if _is_readable(p, left_out)]
    else:
        paths = list(_matches(name, own, left_out))
    return [CorpusFile(str(match)) for match in sorted({*paths})]


def _is_readable(path: Path, left_out: LeftOut) -> bool:
    """Whether a file of a folder has a format that can be read; others are counted."""
    if file_format(path) and path.is_file():
        return True
    kind = "".join(path.suffixes[-2:]) or "no suffix"
    left_out.kinds[kind if path.is_file() else f"{kind}, a broken link or not a file"] += 1
    return False


def _walk(top: Path, own: str, left_out: LeftOut) -> Iterator[Path]:
    """The files below a folder, without hidden ones and those of artifacts."""
    folders = [(top, frozenset[str]())]
    while folders:
        folder, above = folders.pop()
        real = os.path.realpath(folder)
        if real in above or real == own:  # a link to a folder that it lies in would not end
            continue
        if _is_artifact(folder):
            left_out.artifacts.add(str(folder))
            continue
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(
                f"{folder} cannot be read ({reason(error)}).", "Check its permissions."
            ) from error
        for entry in entries:
            if entry.name.startswith("."):
                left_out.hidden += 1
            elif entry.is_dir():
                folders.append((folder / entry.name, above | {real}))
            else:
                yield folder / entry.name


def _is_artifact(folder: Path) -> bool:
    try:
        with (folder / MANIFEST_NAME).open("rb") as stream:
            return MANIFEST_START in stream.read(256)
    except OSError:
        return False


def _holds_parts(folder: Path) -> bool:
    """Whether a folder holds the parts of an artifact, or lies among them."""
    real = Path(os.path.realpath(folder))
    return any(one.name == PARTS and _is_artifact(one.parent) for one in (real, *real.parents))


def _matches(name: str, own: str, left_out: LeftOut) -> Iterator[Path]:
    """The files that a pattern names; its first components are literal as far as they exist."""
    start, pattern = _split_pattern(name)
    head, star, tail = f"/{pattern}/".partition("/**/")
    plain = (head if star else pattern).strip("/")
    found: Iterator[Path] = map(
        Path, glob.iglob(glob.escape(start) + plain) if plain else [start or "."]
    )
    if star:
        wanted = ["**", *tail.strip("/").split("/")] if tail.strip("/") else ["**"]
        found = (
            path
            for top in found
            if top.is_dir()
            for path in _walk(top, own, left_out)
            if _fits(path.relative_to(top).parts, wanted)
        )
    known: dict[Path, bool] = {}

    def is_ours(folder: Path) -> bool:
        if folder not in known:
            known[folder] = _is_artifact(folder) or _holds_parts(folder)
            if known[folder]:
                left_out.artifacts.add(str(folder))
            known[folder] |= os.path.realpath(folder) == own
            known[folder] |= (
                folder != Path(start) and folder != folder.parent and is_ours(folder.parent)
            )
        return known[folder]

    for path in found:
        if path.is_file() and not is_ours(path.parent):
            yield path


def _split_pattern(name: str) -> tuple[str, str]:
    """A pattern as the folder that exists under its very name, and the components that follow."""
    folder = ""
    for component in re.findall(r"[^/]*/+|[^/]+$", name):
        if not os.path.isdir(folder + component):
            break
        folder += component
    return folder, name[len(folder) :]


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the components of a path fit a pattern, in which ** stands for any number of them.

    A component that is hidden fits only one that begins with a dot.
    """
    if not pattern:
        return not parts
    if pattern[0] == "**" and _fits(parts, pattern[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    if pattern[0] == "**":
        return _fits(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _behind(url: str, left_out: LeftOut) -> list[CorpusFile]:
    """The files of a URL: one file, all below a folder, or those that a pattern of * and ** matches."""
    from pyarrow.fs import FileSelector, FileType

    address, mark, options = url.partition("?")
    folder, star, _ = address.partition("*")
    folder = folder.rpartition("/")[0] if star else address
    try:
        if folder.startswith(HUB):
            given, folder = folder, _pinned(folder)
            address = folder + address[len(given) :]
        filesystem, base = _filesystem(folder + mark + options)
        info = filesystem.get_file_info(base)
        if info.type == FileType.File:
            paths = [base]
        elif info.type == FileType.Directory:
            below = filesystem.get_file_info(FileSelector(base, recursive=True))
            paths = sorted(entry.path for entry in below if entry.is_file)
        else:
            paths = []
    except Exception as error:  # each file system fails with the exceptions of its own package
        unusable = isinstance(error, ImportError | ValueError)
        raise InputError(
            f"{url} cannot be {'opened' if unusable else 'reached'} ({reason(error)}).",
            "Check the address and your credentials; for some kinds of URL a package must be installed."
            if unusable
            else "Check the address, the network and your credentials.",
        ) from error
    if star:
        # only * is special in a URL
        wanted = address[len(folder) :].strip("/").replace("[", "[[]").split("/")
        paths = [path for path in paths if _fits(path[len(base) :].strip("/").split("/"), wanted)]
    elif paths != [base]:
        hidden = [path for path in paths if "/." in path[len(base) :]]
        left_out.hidden += len(hidden)
        paths = [path for path in paths if path not in {*hidden}]
    if paths != [base]:
        ours = [
            folder for folder in _parents(paths, base) if _is_artifact_behind(filesystem, folder)
        ]
        left_out.artifacts.update(ours)
        paths = [path for path in paths if not any(path.startswith(f"{own}/") for own in ours)]
    if not star and paths != [base]:
        card = f"{base}/README.md" if folder.startswith(HUB) else ""  # about the texts, not of them
        others = [path for path in paths if not file_format(path) or path == card]
        left_out.kinds.update("".join(PurePosixPath(path).suffixes[-2:]) for path in others)
        paths = [path for path in paths if path not in {*others}]
    scheme = url.partition("://")[0]
    return [
        CorpusFile(path if "://" in path else f"{scheme}://{path}", filesystem, path)
        for path in paths
    ]


def _pinned(address: str) -> str:
    """An address on a Hugging Face hub, with the commit that its revision, or the newest, is now."""
    from huggingface_hub import HfApi, HfFileSystem

    place: Any = HfFileSystem().resolve_path(address)
    if not hasattr(place, "revision"):  # a bucket has no commits
        return address
    found = HfApi().repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision)
    return HUB + replace(place, revision=found.sha, _raw_revision=found.sha).unresolve()


def _is_artifact_behind(filesystem: FileSystem, folder: str) -> bool:
    try:
        with filesystem.open_input_stream(f"{folder}/{MANIFEST_NAME}", compression=None) as stream:
            return MANIFEST_START in stream.read(256)
    except Exception:  # each file system has an exception of its own for a file that is not there
        return False


def _parents(paths: list[str], base: str) -> list[str]:
    """The folders that files lie in, from `base` down."""
    below = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    return sorted(folder for folder in below if folder.startswith(base.rstrip("/")))


def _filesystem(url: str) -> tuple[FileSystem, str]:
    """The file system of a URL and the path in it: obstore's, pyarrow's or fsspec's.

    pyarrow, which has one for gs too, asks for more than ten minutes for credentials, deaf to signals.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    scheme, _, path = url.partition("://")
    if scheme in ("az", "gs") and importlib.util.find_spec("obstore"):
        return PyFileSystem(FSSpecHandler(stores.file_system(scheme))), path
    try:
        return FileSystem.from_uri(url)
    except pa.ArrowInvalid:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        return PyFileSystem(FSSpecHandler(filesystem)), path
