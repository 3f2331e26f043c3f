"""Corpus files, on disk or behind a URL that pyarrow (s3://, gs://, hdfs://) or fsspec opens."""

from __future__ import annotations

import errno
import glob
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from cola_cli.artifacts.files import sha256_stream
from cola_cli.artifacts.reading import reason
from cola_cli.errors import InputError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

FORMATS = (".txt", ".md", ".jsonl", ".csv", ".parquet")
PACKED = (".gz", ".zst")
READ_BYTES = 1 << 20
URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus, named as messages name it."""

    name: str
    filesystem: FileSystem | None = field(default=None, compare=False)  # None: on disk
    path: str = field(default="", compare=False)  # within the file system

    def __str__(self) -> str:
        return self.name

    def state(self) -> tuple[int, int | None]:
        """Its bytes, and the time of its last change in nanoseconds where that is known."""
        if self.filesystem is None:
            status = Path(self.name).stat()
            return status.st_size, status.st_mtime_ns
        info = self.filesystem.get_file_info(self.path)
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.name)
        return info.size, info.mtime_ns if info.mtime else None

    def open(self, advance: Callable[[int], None] = lambda count: None) -> BinaryIO:
        """Its bytes as they lie there, from the first to the last; `advance` is told how many were read."""
        raw: Any
        if self.filesystem is None:
            raw = open(self.name, "rb", buffering=0)  # noqa: SIM115
        else:
            raw = self.filesystem.open_input_stream(self.path, compression=None)
        return io.BufferedReader(_Counted(raw, advance), READ_BYTES)

    def open_parquet(self) -> Any:
        """What pyarrow reads a Parquet file from."""
        return self.name if self.filesystem is None else self.filesystem.open_input_file(self.path)

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of its bytes."""
        with self.open() as stream:
            return sha256_stream(stream)


class _Counted(io.RawIOBase):
    """A stream that tells how much was read of it."""

    def __init__(self, raw: Any, advance: Callable[[int], None]) -> None:
        self._raw = raw
        self._advance = advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._raw.readinto(buffer)
        self._advance(count)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def file_format(name: object) -> str | None:
    """The format suffix of a corpus file, without its packing; None when it is none."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(str(name)).suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def find_files(names: list[str]) -> list[CorpusFile]:
    """The corpus files that files, folders, patterns and URLs name, without repetition, in a stable order.

    Raises InputError for a name that yields nothing or a file of an unknown kind.
    """
    found: dict[CorpusFile, None] = {}
    for name in names:
        matches = _behind(name) if URL.match(name) else _on_disk(name)
        if not matches:
            kinds = " ".join(FORMATS)
            raise InputError(
                f"{name} names no corpus file.",
                f"Give files, folders or patterns of {kinds} files, plain, .gz or .zst.",
            )
        for match in matches:
            if not file_format(match):
                suffixes = "".join(PurePosixPath(match.name).suffixes) or "no suffix"
                raise InputError(
                    f"{match} is of no known kind ({suffixes}).",
                    f"Rename or convert it to one of {' '.join(FORMATS)}.",
                )
            found[match] = None
    return list(found)


def _on_disk(name: str) -> list[CorpusFile]:
    path = Path(name)
    if path.is_dir():
        paths = sorted(p for p in path.rglob("*") if p.is_file() and file_format(p))
    elif path.is_file():
        paths = [path]
    else:
        paths = sorted(Path(match) for match in glob.glob(name, recursive=True))
        paths = [match for match in paths if match.is_file()]
    return [CorpusFile(str(match)) for match in paths]


def _behind(url: str) -> list[CorpusFile]:
    """The files of a URL: one file, all below a folder, or those that a pattern of * and ** matches."""
    import pyarrow as pa
    from pyarrow.fs import FileSelector, FileType

    address, mark, options = url.partition("?")
    folder, star, _ = address.partition("*")
    folder = folder.rpartition("/")[0] if star else address
    try:
        filesystem, base = _filesystem(folder + mark + options)
        info = filesystem.get_file_info(base)
        if info.type == FileType.File:
            paths = [base]
        elif info.type == FileType.Directory:
            below = filesystem.get_file_info(FileSelector(base, recursive=True))
            paths = sorted(entry.path for entry in below if entry.is_file)
        else:
            paths = []
    except (OSError, ImportError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{url} cannot be opened ({reason(error)}).",
            "Check the address and your credentials; for some kinds of URL a package must be installed.",
        ) from error
    if star:
        pattern = _pattern(address[len(folder) :].lstrip("/"))
        paths = [path for path in paths if pattern.fullmatch(path[len(base) :].lstrip("/"))]
    elif paths != [base]:
        paths = [path for path in paths if file_format(path)]
    scheme = url.partition("://")[0]
    return [
        CorpusFile(path if "://" in path else f"{scheme}://{path}", filesystem, path)
        for path in paths
    ]


def _filesystem(url: str) -> tuple[FileSystem, str]:
    """The file system of a URL and the path in it: pyarrow's own, else fsspec's."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        return FileSystem.from_uri(url)
    except pa.ArrowInvalid:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        return PyFileSystem(FSSpecHandler(filesystem)), path


def _pattern(text: str) -> re.Pattern[str]:
    """Of a pattern in which * stands for any name and **/ for any folders."""
    escaped = re.escape(text).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return re.compile(escaped)
