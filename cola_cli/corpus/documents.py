"""Documents streamed from text files: .txt .md .jsonl .csv .parquet, plain or packed as .gz or .zst.

Memory stays flat: one line or record is held at a time, and a larger one than `DOCUMENT_LIMIT` is an error.
What a file holds is read rightly, refused by line or row, or counted: never passed over silently.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from cola_cli.artifacts.files import sha256_stream
from cola_cli.artifacts.reading import (
    VALUES_LIMIT,
    conversion,
    foreign_encoding,
    parse_json,
    reason,
    shown,
)
from cola_cli.artifacts.unpacking import DAMAGED, unpacked
from cola_cli.corpus.files import READ_BYTES, CorpusFile, file_format
from cola_cli.corpus.parquet_footer import largest_page
from cola_cli.errors import ColaError, InputError, is_encodable

DOCUMENT_LIMIT = 128 << 20  # bytes of one document, record or line
PARQUET_ROWS = 256
PAGE_LIMIT = 1 << 30  # bytes, unpacked, of one page, and of the rows that are held at once

LINE_FEEDS = r"Write line feeds, for example with: tr '\r' '\n'."

DocumentRule = Literal["blank-line", "file"]


class ChangedFile(InputError):
    """A corpus file that is not, byte for byte, the one whose digest is known."""


@dataclass
class Range:
    """What to read of a file: bytes of a text file on disk, or row groups of a Parquet file.

    Of a text file these are the lines that begin from `start` on and before `stop` (None: at the end); where
    blank lines part documents, the documents after those of these lines that are blank.
    `first` is the number of the first of the lines, where it is known; `lines` counts them while they are
    read, and `at` is the place of the line that was read last.
    """

    start: int = 0
    stop: int | None = None
    first: int = 1
    lines: int = 0
    at: int = 0

    @property
    def whole(self) -> bool:
        """Whether it is the whole file."""
        return self.start == 0 and self.stop is None

    @property
    def ended(self) -> bool:
        """Whether the line that was read last belongs to the next range."""
        return self.stop is not None and self.at >= self.stop


@dataclass(frozen=True)
class Document:
    """One document and where it came from, such as `line 12`."""

    text: str
    place: str


def read_documents(
    source: CorpusFile | Path,
    text_field: str | None,
    rule: DocumentRule,
    expected: dict[str, Any] | None = None,
    part: Range | None = None,
) -> Iterator[Document]:
    """The documents of one file, or of a part of it.

    An empty text stands for an empty file, an empty text and a null field.

    `text_field` is the field or column of records, `a.b` the field b within the field a, None for whole lines
    of JSON; `rule` cuts text files at blank lines or takes them whole.
    `expected` (bytes, modified, sha256) is what is known of the file. Raises InputError naming file and line
    or row, and ChangedFile after the last document when the file is not the expected one: by its digest if
    it was read whole, else by its size and time.
    """
    part = part or Range()
    file = source if isinstance(source, CorpusFile) else CorpusFile(str(source))
    kind = file_format(file)
    if text_field is None and kind != ".jsonl":
        raise InputError(
            f"{file} is not a file of JSON lines.",
            "Write each conversation as an object on a line of a .jsonl.",
        )
    try:
        size, _ = file.state()
        if size == 0:
            yield Document("", "line 1")
            _require(file, expected, hashlib.sha256().hexdigest())
            return
        if kind == ".parquet" and text_field is not None:
            yield from _parquet(file, text_field, expected, part)
            return
        digest = hashlib.sha256() if expected and part.whole else None
        with file.open(digest, max(0, part.start - 1)) as raw:
            stream = unpacked(file, raw)
            if kind == ".jsonl" or text_field is None:
                yield from _records(file, stream, text_field, part)
            elif kind == ".csv":
                yield from _table(file, stream, text_field)
            elif rule == "file":
                yield Document(_whole(file, stream), "line 1")
            else:
                yield from _paragraphs(file, stream, part)
            while part.whole and raw.read(READ_BYTES):
                pass
        if digest is not None:
            _require(file, expected, digest.hexdigest())
        elif expected:
            require_unchanged(file, expected)
    except DAMAGED as error:
        raise InputError(
            f"{file} is truncated or damaged ({reason(error)}).", "Fetch it again."
        ) from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({reason(error)}).", "Check the file.") from error
    except Exception as error:
        if file.filesystem is None or isinstance(error, ColaError):
            raise
        # each file system behind a URL fails with the exceptions of its own package
        raise InputError(f"{file} cannot be read ({reason(error)}).", "Try again.") from error


def require_unchanged(file: CorpusFile, expected: dict[str, Any]) -> None:
    """Raise ChangedFile when size or time of a file are not the expected ones."""
    if file.state() != (expected["bytes"], expected["modified"]):
        raise changed(file)


def _require(file: CorpusFile, expected: dict[str, Any] | None, digest: str) -> None:
    if expected and expected["sha256"] != digest:
        raise changed(file)


def changed(file: CorpusFile) -> ChangedFile:
    """The error of a file that is not the one whose digest is known."""
    return ChangedFile(
        f"{file} changed while it was read.",
        "Run the command again, with --overwrite, when nothing writes to the file.",
    )


def _lines(file: CorpusFile, stream: BinaryIO, part: Range) -> Iterator[tuple[int, str]]:
    """Numbered lines from the start of a part on, each decoded by itself so that an error can name it."""
    number, place = part.first - 1, max(0, part.start - 1)
    while place < part.start:  # the end of the line before
        skipped = stream.readline(DOCUMENT_LIMIT)
        place += len(skipped)
        if skipped.endswith(b"\n") or not skipped:
            break
    while line := stream.readline(DOCUMENT_LIMIT):
        number += 1
        part.at, place = place, place + len(line)
        part.lines += not part.ended
        if len(line) >= DOCUMENT_LIMIT:
            raise InputError(
                f"{file}, line {number} is longer than {DOCUMENT_LIMIT >> 20} MiB.",
                "Cut it into several documents.",
            )
        yield number, _decoded(file, number, line, first=part.at == 0)


def _decoded(file: CorpusFile, number: int, line: bytes, first: bool) -> str:
    if first and (encoding := foreign_encoding(line)):
        raise InputError(f"{file} is {encoding}, not UTF-8.", conversion(line))
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}, line {number} is not UTF-8 (byte {line[error.start]:#04x} at column"
            f" {error.start + 1}).",
            conversion(line),
        ) from error


def _whole(file: CorpusFile, stream: BinaryIO) -> str:
    # StringIO here and below: a list of a hundred million short lines takes forty times their size
    pieces = io.StringIO()
    for _, line in _lines(file, stream, Range()):
        pieces.write(line)
        if pieces.tell() > DOCUMENT_LIMIT:
            raise InputError(
                f"{file} is longer than {DOCUMENT_LIMIT >> 20} MiB as one document.",
                "Use --documents blank-line, or cut it.",
            )
    return pieces.getvalue()


def _paragraphs(file: CorpusFile, stream: BinaryIO, part: Range) -> Iterator[Document]:
    pieces, start = io.StringIO(), 0  # 0: no document begun
    passed = part.start > 0  # at first come lines of a document that the part before holds
    for number, line in _lines(file, stream, part):
        if passed:
            passed = bool(line.strip())
        elif line.strip():
            if "\r\r" in line.rstrip("\r\n"):  # blank lines, which would part documents
                raise InputError(
                    f"{file}, line {number} holds lines that end in CR alone.", LINE_FEEDS
                )
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
        if not start and part.ended:
            return
    if start:
        yield Document(pieces.getvalue().strip("\r\n"), f"line {start}")


def _records(
    file: CorpusFile, stream: BinaryIO, text_field: str | None, part: Range
) -> Iterator[Document]:
    once = None  # a chat is parsed by who takes it
    if text_field is not None:  # the last of two would be kept silently
        once = {text_field, *text_field.split(".")}.__contains__
    for number, line in _lines(file, stream, part):
        if part.ended:
            return
        if not line.strip():
            continue
        try:
            record = parse_json(line, once)
        except ValueError as error:
            why = (
                f"{error.msg}, column {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else error
            )
            raise InputError(
                f"{file}, line {number} is not valid JSON ({reason(why)}).",
                "Correct or remove that line.",
            ) from error
        place = f"line {number}"
        if text_field is None:
            yield Document(line, place)
            continue
        yield Document(_field(file, place, record, text_field), place)


def _field(file: CorpusFile, place: str, record: Any, text_field: str) -> str:
    """The text of a record, empty for null."""
    if not isinstance(record, dict):
        raise InputError(
            f"{file}, {place} is {_kind_of(record)}, not an object with fields.",
            "Write each record as an object with its text in a field.",
        )
    value = record
    for name in [text_field] if text_field in record else text_field.split("."):
        if value is None:
            break
        if not isinstance(value, dict) or name not in value:
            has = _listed(map(str, record)) if record else "no fields"
            raise InputError(
                f"{file}, {place} has no field {text_field!r} (it has {has}).",
                "Name the field with --text-field.",
            )
        value = value[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{file}, {place}: the field {text_field!r} is {_kind_of(value)}, not a text.",
            "Name another field with --text-field, or correct that record.",
        )
    if not is_encodable(value):
        raise InputError(
            f"{file}, {place} holds half of a surrogate pair.", "Correct or remove that record."
        )
    return value


def _kind_of(value: Any) -> str:
    """What a JSON value is, in a sentence."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds = {int: "a number", float: "a number", list: "a list", dict: "an object", str: "a text"}
    return kinds.get(type(value), shown(type(value).__name__))


def _listed(names: Iterable[str]) -> str:
    """Names of columns or fields in a sentence."""
    return shown(", ".join(itertools.islice(names, 100)))


def _table(file: CorpusFile, stream: BinaryIO, text_field: str) -> Iterator[Document]:
    csv.field_size_limit(DOCUMENT_LIMIT)
    size = fields = 0  # of the record that is being read: a quoted one can span any number of lines

    def lines() -> Iterator[str]:
        nonlocal size, fields
        for number, line in _lines(file, stream, Range()):
            size += len(line)
            fields += line.count(",")
            if size > DOCUMENT_LIMIT or fields > VALUES_LIMIT:
                raise InputError(
                    f"{file}, line {number}: the record is longer than {DOCUMENT_LIMIT >> 20} MiB"
                    f" or {VALUES_LIMIT:,} fields.",
                    "Close its quotes, or cut it into several records.",
                )
            yield line

    # strict: an open quote is an error, not a field that holds the rest of the file
    rows = csv.reader(lines(), strict=True)
    first = 1  # line of the record that is being read
    try:
        header = next(rows, [])
        if header.count(text_field) != 1:
            problem = "two columns" if text_field in header else "no column"
            raise InputError(
                f"{file} has {problem} {text_field!r} (it has {_listed(header) or 'no columns'}).",
                "Name the column with --text-field."
                if text_field not in header
                else "Rename or remove one of them.",
            )
        column = header.index(text_field)
        first = rows.line_num + 1
        for row in rows:
            size = fields = 0
            place = f"line {rows.line_num}"
            if row and len(row) != len(header):
                raise InputError(
                    f"{file}, {place} has {len(row)} fields, but the header has {len(header)}.",
                    "Put quotes around a text that holds commas, or correct that line.",
                )
            if row:
                yield Document(_field(file, place, {text_field: row[column]}, text_field), place)
            first = rows.line_num + 1
    except csv.Error as error:
        lines_read = (
            f"line {first}" if first >= rows.line_num else f"lines {first} to {rows.line_num}"
        )
        raise InputError(
            f"{file}, {lines_read}: not valid CSV ({reason(error)}).",
            LINE_FEEDS
            if "new-line character" in str(error)
            else "Correct the quotes there: a quote within a quoted field is written twice.",
        ) from error


def _parquet(
    file: CorpusFile, text_field: str, expected: dict[str, Any] | None, part: Range
) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open_parquet() as raw, pq.ParquetFile(raw) as table:
            path = _column(file, table.schema_arrow, text_field)
            # Arrow fails on some columns of a row group of no rows, which a writer of batches may leave
            sizes = [table.metadata.row_group(n).num_rows for n in range(table.num_row_groups)]
            groups = [n for n in range(len(sizes))[part.start : part.stop] if sizes[n]]
            at_a_time = _rows_at_a_time(file, table.metadata, ".".join(path), groups)
            row = sum(sizes[: part.start])
            batches = table.iter_batches(at_a_time, row_groups=groups, columns=[".".join(path)])
            for batch in batches if groups else ():
                for value in batch.column(0).to_pylist():
                    place = f"row {row}"
                    yield Document(_field(file, place, {path[0]: value}, text_field), place)
                    row += 1
            if expected and file.filesystem is None and part.whole:
                raw.seek(0)
                _require(file, expected, sha256_stream(raw))
        if expected and not (file.filesystem is None and part.whole):
            require_unchanged(file, expected)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{file} is not a whole Parquet file ({reason(error)}).", "Fetch it again."
        ) from error


def _column(file: CorpusFile, schema: Any, text_field: str) -> list[str]:
    """The path of the text column in Arrow's schema. Raises InputError when it holds no text."""
    import pyarrow.types as types

    path = [text_field] if text_field in schema.names else text_field.split(".")
    names, kind = schema.names, None
    for name in path:
        if name not in names:
            raise InputError(
                f"{file} has no column {text_field!r} (it has {_listed(schema.names)}).",
                "Name the column with --text-field.",
            )
        if names.count(name) > 1:
            raise InputError(
                f"{file} has two columns {text_field!r}.", "Rename or remove one of them."
            )
        kind = schema.field(name).type if kind is None else kind.field(name).type
        names = [field.name for field in kind] if types.is_struct(kind) else []
    if not _is_text(kind):
        raise InputError(
            f"{file}: the column {text_field!r} holds {shown(kind)}, not text.",
            "Name another column with --text-field.",
        )
    return path


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(
        test(kind)
        for test in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    )


def _rows_at_a_time(file: CorpusFile, metadata: Any, column: str, groups: list[int]) -> int:
    """How many rows may be held at once: no text is larger than the largest page of its column."""
    if file.filesystem is not None:  # its pages would have to be fetched to be looked at
        return PARQUET_ROWS
    columns = [
        number
        for number in range(metadata.num_columns)
        if metadata.schema.column(number).path == column
    ]
    largest = largest_page(Path(file.name), columns, groups)
    if largest > PAGE_LIMIT:
        raise InputError(
            f"{file} has a page of {largest >> 20:,} MiB unpacked.",
            f"Write it with pages of at most {PAGE_LIMIT >> 20} MiB.",
        )
    return max(1, min(PARQUET_ROWS, PAGE_LIMIT // max(largest, 1)))
