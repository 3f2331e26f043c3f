"""Documents streamed from text files: .txt .md .jsonl .csv .parquet, plain or packed as .gz or .zst.

Memory stays flat: a line or record is held at a time, and one that is larger than `DOCUMENT_LIMIT` is an
error rather than a reason to swap.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO, Literal

from cola_cli.artifacts.pages import largest_page
from cola_cli.artifacts.reading import VALUES_LIMIT, parse_json, reason, shown
from cola_cli.errors import InputError

FORMATS = (".txt", ".md", ".jsonl", ".csv", ".parquet")
PACKED = (".gz", ".zst")
DOCUMENT_LIMIT = 128 << 20  # bytes of one document, record or line
READ_BYTES = 1 << 20
PARQUET_ROWS = 256
PAGE_LIMIT = 1 << 30  # bytes, unpacked, of one page, and of the rows that are held at once
# Of packed zstd data at a time: it can grow 32,768-fold, and comes out all at once.
ZSTD_BYTES = 1 << 10

DocumentRule = Literal["blank-line", "file"]


@dataclass(frozen=True)
class Document:
    """One document and where it came from, such as `line 12`."""

    text: str
    place: str


def find_files(names: list[str]) -> list[Path]:
    """The corpus files that files, folders and patterns name, without repetition, in a stable order.

    Raises InputError for a name that yields nothing or a file of an unknown kind.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.is_file() and file_format(p))
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(name, recursive=True))
            matches = [match for match in matches if match.is_file()]
        if not matches:
            kinds = " ".join(FORMATS)
            raise InputError(
                f"{name} names no corpus file.",
                f"Give files, folders or patterns of {kinds} files, plain, .gz or .zst.",
            )
        for match in matches:
            if not file_format(match):
                raise InputError(
                    f"{match} is of no known kind ({''.join(match.suffixes) or 'no suffix'}).",
                    f"Rename or convert it to one of {' '.join(FORMATS)}.",
                )
            found[match] = None
    return list(found)


def file_format(path: Path) -> str | None:
    """The format suffix of a corpus file, without its packing; None when it is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def read_documents(path: Path, text_field: str, rule: DocumentRule) -> Iterator[Document]:
    """The documents of one file, empty ones included.

    `text_field` is the field or column of records; `rule` cuts text files at blank lines or takes them
    whole. Raises InputError naming file and line or row.
    """
    kind = file_format(path)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty.", "Remove it from the corpus.")
        if kind == ".parquet":
            yield from _parquet(path, text_field)
            return
        with path.open("rb") as raw:
            stream = unpacked(path, raw)
            if kind == ".jsonl":
                yield from _records(path, stream, text_field)
            elif kind == ".csv":
                yield from _table(path, stream, text_field)
            elif rule == "file":
                yield Document(_whole(path, stream), "line 1")
            else:
                yield from _paragraphs(path, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is truncated or damaged ({reason(error)}).", "Fetch it again."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}).", "Check the file.") from error


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of a .zst file; unlike zstandard's own reader it notices truncation."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw = raw
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame: Any = None
        self._packed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._ready:
            if not self._packed:
                self._packed = self._raw.read(ZSTD_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the compressed data ends too early")
                return 0
            if self._frame is None:
                self._frame = self._new_frame()
            try:
                self._ready = self._frame.decompress(self._packed)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            self._packed = b""
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def unpacked(path: Path, raw: BinaryIO) -> BinaryIO:
    """What a .gz or .zst file holds, other files as they are; reading raises EOFError when it is cut off."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if suffix == ".zst":
        return io.BufferedReader(_ZstdStream(raw), READ_BYTES)
    return raw


def _lines(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Numbered lines, each decoded by itself so that an error can name it."""
    number = 0
    while line := stream.readline(DOCUMENT_LIMIT):
        number += 1
        if len(line) >= DOCUMENT_LIMIT:
            raise InputError(
                f"{path}, line {number} is longer than {DOCUMENT_LIMIT >> 20} MiB.",
                "Cut it into several documents.",
            )
        yield number, _decoded(path, number, line)


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number} is not UTF-8 (byte {line[error.start]:#04x} at column"
            f" {error.start + 1}).",
            "Convert the file, for example with: iconv -f latin1 -t utf-8.",
        ) from error


def _whole(path: Path, stream: BinaryIO) -> str:
    # StringIO here and below: a list of a hundred million short lines takes forty times their size
    pieces = io.StringIO()
    for _, line in _lines(path, stream):
        pieces.write(line)
        if pieces.tell() > DOCUMENT_LIMIT:
            raise InputError(
                f"{path} is longer than {DOCUMENT_LIMIT >> 20} MiB as one document.",
                "Use --documents blank-line, or cut it.",
            )
    return pieces.getvalue()


def _paragraphs(path: Path, stream: BinaryIO) -> Iterator[Document]:
    pieces, start = io.StringIO(), 0  # 0: no document begun
    for number, line in _lines(path, stream):
        if line.strip():
            start = start or number
            pieces.write(line)
            if pieces.tell() > DOCUMENT_LIMIT:
                raise InputError(
                    f"{path}, line {start}: the document is longer than {DOCUMENT_LIMIT >> 20} MiB.",
                    "Separate documents by blank lines.",
                )
        elif start:
            yield Document(pieces.getvalue().strip("\r\n"), f"line {start}")
            pieces, start = io.StringIO(), 0
    if start:
        yield Document(pieces.getvalue().strip("\r\n"), f"line {start}")


def _records(path: Path, stream: BinaryIO, text_field: str) -> Iterator[Document]:
    for number, line in _lines(path, stream):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            why = (
                f"{error.msg}, column {error.colno}"
                if isinstance(error, JSONDecodeError)
                else error
            )
            raise InputError(
                f"{path}, line {number} is not valid JSON ({reason(why)}).",
                "Correct or remove that line.",
            ) from error
        yield Document(_field(path, f"line {number}", record, text_field), f"line {number}")


def _field(path: Path, place: str, record: Any, text_field: str) -> str:
    text = record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        has = _listed(map(str, record)) if isinstance(record, dict) else "no fields"
        raise InputError(
            f"{path}, {place} has no text in the field {text_field!r} (it has {has}).",
            "Name the field with --text-field.",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path}, {place} holds half of a surrogate pair.", "Correct or remove that record."
        ) from error
    return text


def _listed(names: Iterable[str]) -> str:
    """Names of columns or fields in a sentence."""
    return shown(", ".join(itertools.islice(names, 100)))


def _table(path: Path, stream: BinaryIO, text_field: str) -> Iterator[Document]:
    csv.field_size_limit(DOCUMENT_LIMIT)
    size = fields = 0  # of the record that is being read: a quoted one can span any number of lines

    def lines() -> Iterator[str]:
        nonlocal size, fields
        for number, line in _lines(path, stream):
            size += len(line)
            fields += line.count(",")
            if size > DOCUMENT_LIMIT or fields > VALUES_LIMIT:
                raise InputError(
                    f"{path}, line {number}: the record is longer than {DOCUMENT_LIMIT >> 20} MiB"
                    f" or {VALUES_LIMIT:,} fields.",
                    "Close its quotes, or cut it into several records.",
                )
            yield line

    rows = csv.DictReader(lines())
    try:
        if text_field not in (rows.fieldnames or []):
            raise InputError(
                f"{path} has no column {text_field!r} (it has {_listed(rows.fieldnames or [])}).",
                "Name the column with --text-field.",
            )
        for row in rows:
            size = fields = 0
            place = f"line {rows.line_num}"
            yield Document(_field(path, place, row, text_field), place)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {rows.line_num} is not valid CSV ({reason(error)}).",
            "Correct that line.",
        ) from error


def _parquet(path: Path, text_field: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise InputError(
                    f"{path} has no column {text_field!r} (it has {_listed(names)}).",
                    "Name the column with --text-field.",
                )
            kind = file.schema_arrow.field(names.index(text_field)).type
            if names.count(text_field) > 1 or not _is_text(kind):
                raise InputError(
                    f"{path}: the column {text_field!r} holds {shown(kind)}, not text, or is there twice.",
                    "Name the column with --text-field.",
                )
            rows = _rows_at_a_time(path, file.metadata, text_field)
            row = 0
            for batch in file.iter_batches(batch_size=rows, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    yield Document(
                        _field(path, f"row {row}", {text_field: text}, text_field), f"row {row}"
                    )
                    row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole Parquet file ({reason(error)}).", "Fetch it again."
        ) from error


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(
        test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view)
    )


def _rows_at_a_time(path: Path, metadata: Any, text_field: str) -> int:
    """How many rows may be held at once: no text is larger than the largest page of its column."""
    columns = [
        number
        for number in range(metadata.num_columns)
        if metadata.schema.column(number).path == text_field
    ]
    largest = largest_page(path, metadata, columns) if metadata.num_rows else 0
    if largest > PAGE_LIMIT:
        raise InputError(
            f"{path} has a page of {largest >> 20:,} MiB unpacked.",
            f"Write it with pages of at most {PAGE_LIMIT >> 20} MiB.",
        )
    return max(1, min(PARQUET_ROWS, PAGE_LIMIT // max(largest, 1)))
