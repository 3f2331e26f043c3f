"""Documents streamed from text files: .txt .md .jsonl .csv .parquet, plain or packed as .gz or .zst.

Memory stays flat: a line or record is held at a time, and one that is larger than `DOCUMENT_LIMIT` is an
error rather than a reason to swap.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO, Literal

from cola_cli.artifacts.reading import VALUES_LIMIT, is_encodable, parse_json, reason, shown
from cola_cli.artifacts.unpacking import unpacked
from cola_cli.corpus.files import CorpusFile, file_format
from cola_cli.corpus.parquet_footer import largest_page
from cola_cli.errors import ColaError, InputError

DOCUMENT_LIMIT = 128 << 20  # bytes of one document, record or line
PARQUET_ROWS = 256
PAGE_LIMIT = 1 << 30  # bytes, unpacked, of one page, and of the rows that are held at once

DocumentRule = Literal["blank-line", "file"]


@dataclass(frozen=True)
class Document:
    """One document and where it came from, such as `line 12`."""

    text: str
    place: str


def read_documents(
    source: CorpusFile | Path,
    text_field: str,
    rule: DocumentRule,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Document]:
    """The documents of one file, empty ones included.

    `text_field` is the field or column of records; `rule` cuts text files at blank lines or takes them
    whole; `advance` is told the bytes of the file that were read. Raises InputError naming file and line or
    row.
    """
    file = source if isinstance(source, CorpusFile) else CorpusFile(str(source))
    kind = file_format(file)
    try:
        size, _ = file.state()
        if size == 0:
            raise InputError(f"{file} is empty.", "Remove it from the corpus.")
        if kind == ".parquet":
            yield from _parquet(file, text_field, size, advance)
            return
        with file.open(advance) as raw:
            stream = unpacked(file, raw)
            if kind == ".jsonl":
                yield from _records(file, stream, text_field)
            elif kind == ".csv":
                yield from _table(file, stream, text_field)
            elif rule == "file":
                yield Document(_whole(file, stream), "line 1")
            else:
                yield from _paragraphs(file, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{file} is truncated or damaged ({reason(error)}).", "Fetch it again."
        ) from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({reason(error)}).", "Check the file.") from error
    except Exception as error:
        if file.filesystem is None or isinstance(error, ColaError):
            raise
        # what lies behind a URL fails with the exceptions of whichever package reaches it
        raise InputError(f"{file} cannot be read ({reason(error)}).", "Try again.") from error


def _lines(file: CorpusFile, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Numbered lines, each decoded by itself so that an error can name it."""
    number = 0
    while line := stream.readline(DOCUMENT_LIMIT):
        number += 1
        if len(line) >= DOCUMENT_LIMIT:
            raise InputError(
                f"{file}, line {number} is longer than {DOCUMENT_LIMIT >> 20} MiB.",
                "Cut it into several documents.",
            )
        yield number, _decoded(file, number, line)


def _decoded(file: CorpusFile, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}, line {number} is not UTF-8 (byte {line[error.start]:#04x} at column"
            f" {error.start + 1}).",
            "Convert the file, for example with: iconv -f latin1 -t utf-8.",
        ) from error


def _whole(file: CorpusFile, stream: BinaryIO) -> str:
    # StringIO here and below: a list of a hundred million short lines takes forty times their size
    pieces = io.StringIO()
    for _, line in _lines(file, stream):
        pieces.write(line)
        if pieces.tell() > DOCUMENT_LIMIT:
            raise InputError(
                f"{file} is longer than {DOCUMENT_LIMIT >> 20} MiB as one document.",
                "Use --documents blank-line, or cut it.",
            )
    return pieces.getvalue()


def _paragraphs(file: CorpusFile, stream: BinaryIO) -> Iterator[Document]:
    pieces, start = io.StringIO(), 0  # 0: no document begun
    for number, line in _lines(file, stream):
        if line.strip():
            start = start or number
            pieces.write(line)
            if pieces.tell() > DOCUMENT_LIMIT:
                raise InputError(
                    f"{file}, line {start}: the document is longer than {DOCUMENT_LIMIT >> 20} MiB.",
                    "Separate documents by blank lines.",
                )
        elif start:
            yield Document(pieces.getvalue().strip("\r\n"), f"line {start}")
            pieces, start = io.StringIO(), 0
    if start:
        yield Document(pieces.getvalue().strip("\r\n"), f"line {start}")


def _records(file: CorpusFile, stream: BinaryIO, text_field: str) -> Iterator[Document]:
    for number, line in _lines(file, stream):
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
                f"{file}, line {number} is not valid JSON ({reason(why)}).",
                "Correct or remove that line.",
            ) from error
        yield Document(_field(file, f"line {number}", record, text_field), f"line {number}")


def _field(file: CorpusFile, place: str, record: Any, text_field: str) -> str:
    text = record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        has = _listed(map(str, record)) if isinstance(record, dict) else "no fields"
        raise InputError(
            f"{file}, {place} has no text in the field {text_field!r} (it has {has}).",
            "Name the field with --text-field.",
        )
    if not is_encodable(text):
        raise InputError(
            f"{file}, {place} holds half of a surrogate pair.", "Correct or remove that record."
        )
    return text


def _listed(names: Iterable[str]) -> str:
    """Names of columns or fields in a sentence."""
    return shown(", ".join(itertools.islice(names, 100)))


def _table(file: CorpusFile, stream: BinaryIO, text_field: str) -> Iterator[Document]:
    csv.field_size_limit(DOCUMENT_LIMIT)
    size = fields = 0  # of the record that is being read: a quoted one can span any number of lines

    def lines() -> Iterator[str]:
        nonlocal size, fields
        for number, line in _lines(file, stream):
            size += len(line)
            fields += line.count(",")
            if size > DOCUMENT_LIMIT or fields > VALUES_LIMIT:
                raise InputError(
                    f"{file}, line {number}: the record is longer than {DOCUMENT_LIMIT >> 20} MiB"
                    f" or {VALUES_LIMIT:,} fields.",
                    "Close its quotes, or cut it into several records.",
                )
            yield line

    rows = csv.DictReader(lines())
    try:
        if text_field not in (rows.fieldnames or []):
            raise InputError(
                f"{file} has no column {text_field!r} (it has {_listed(rows.fieldnames or [])}).",
                "Name the column with --text-field.",
            )
        for row in rows:
            size = fields = 0
            place = f"line {rows.line_num}"
            yield Document(_field(file, place, row, text_field), place)
    except csv.Error as error:
        raise InputError(
            f"{file}, line {rows.line_num} is not valid CSV ({reason(error)}).",
            "Correct that line.",
        ) from error


def _parquet(
    file: CorpusFile, text_field: str, size: int, advance: Callable[[int], None]
) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.open_parquet()) as table:
            names = table.schema_arrow.names
            if text_field not in names:
                raise InputError(
                    f"{file} has no column {text_field!r} (it has {_listed(names)}).",
                    "Name the column with --text-field.",
                )
            kind = table.schema_arrow.field(names.index(text_field)).type
            if names.count(text_field) > 1 or not _is_text(kind):
                raise InputError(
                    f"{file}: the column {text_field!r} holds {shown(kind)}, not text, or is there twice.",
                    "Name the column with --text-field.",
                )
            at_a_time = _rows_at_a_time(file, table.metadata, text_field)
            row, rows = 0, max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=at_a_time, columns=[text_field]):
                before = row
                for text in batch.column(0).to_pylist():
                    yield Document(
                        _field(file, f"row {row}", {text_field: text}, text_field), f"row {row}"
                    )
                    row += 1
                advance(size * row // rows - size * before // rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{file} is not a whole Parquet file ({reason(error)}).", "Fetch it again."
        ) from error


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(
        test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view)
    )


def _rows_at_a_time(file: CorpusFile, metadata: Any, text_field: str) -> int:
    """How many rows may be held at once: no text is larger than the largest page of its column."""
    if file.filesystem is not None:  # its pages would have to be fetched to be looked at
        return PARQUET_ROWS
    columns = [
        number
        for number in range(metadata.num_columns)
        if metadata.schema.column(number).path == text_field
    ]
    largest = largest_page(Path(file.name), columns) if metadata.num_rows else 0
    if largest > PAGE_LIMIT:
        raise InputError(
            f"{file} has a page of {largest >> 20:,} MiB unpacked.",
            f"Write it with pages of at most {PAGE_LIMIT >> 20} MiB.",
        )
    return max(1, min(PARQUET_ROWS, PAGE_LIMIT // max(largest, 1)))
