"""How much memory a Parquet file can take, from its footer and the headers of its pages.

A row group of numbers takes as much as the footer claims, or an error where its pages hold less. For texts a
footer says nothing, but a page is unpacked into as many bytes as its own header says, and no value is larger
than its page. Both are Thrift structures in the compact protocol; they are read here because Arrow ends the
process, instead of raising an error, when it is asked for some columns of a hostile footer.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

# Types in the compact protocol.
TRUE, FALSE, BYTE, NUMBERS, DOUBLE, BINARY, LISTS, STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12
# Fields of a page header; of a footer, a row group, a column chunk and its metadata.
UNPACKED, PACKED = 2, 3
GROUPS, COLUMNS, METADATA = 4, 1, 3
VALUES, SIZE, DATA, DICTIONARY = 5, 7, 9, 11
TAIL = 8  # bytes at the end of a file: the size of the footer, and PAR1
FOOTER_LIMIT = 64 << 20  # bytes
DEPTH_LIMIT = 16
GROUP_LIMIT = 2 << 30  # bytes of a row group in memory; ours have some megabytes
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}


class ColumnChunk(NamedTuple):
    """A column of a row group: how many values, where its pages begin, and their bytes."""

    values: int
    place: int
    size: int


def column_chunks(path: Path) -> list[list[ColumnChunk]]:
    """The columns of every row group. Raises OSError, or ValueError for a file without a footer."""
    with _mapped(path) as data:
        length = int.from_bytes(data[-TAIL:-4], "little")
        start = len(data) - TAIL - length
        if data[-4:] != b"PAR1" or start < 4 or length > FOOTER_LIMIT:
            raise ValueError("it has no footer")
        _, footer = _value(data, start, STRUCT, 0)
    try:
        return [[_chunk(column[METADATA]) for column in group[COLUMNS]] for group in footer[GROUPS]]
    except (KeyError, TypeError) as error:
        raise ValueError("its footer lacks what every footer has") from error


def require_group(chunks: Sequence[ColumnChunk], schema: Any) -> None:
    """Raise ValueError when a row group would take more than `GROUP_LIMIT` bytes of memory to read.

    `schema` is Arrow's Parquet schema of the file. Texts count as nothing: only foreign corpora have them.
    """
    claimed = 0
    for number, chunk in enumerate(chunks):
        column = schema.column(number)
        claimed += chunk.values * WIDTHS.get(column.physical_type, max(column.length, 0))
        if chunk.values < 0 or claimed > GROUP_LIMIT:
            raise ValueError(f"a row group claims {chunk.values} values of {column.name}")


def largest_page(path: Path, columns: Sequence[int], groups: Sequence[int]) -> int:
    """The unpacked bytes of the largest page of some columns in some row groups, by their numbers.

    Raises OSError, or ValueError where the pages do not follow one another as the footer says.
    """
    largest = 0
    chunks = column_chunks(path)
    if any(group >= len(chunks) for group in groups):
        raise ValueError("its footer has fewer row groups than Arrow reads")
    with _mapped(path) as data:
        for group in (chunks[number] for number in groups):
            for _, place, size in (group[column] for column in columns if column < len(group)):
                end = place + size
                if not 0 <= place <= end <= len(data):
                    raise ValueError("its columns lie outside of it")
                while place < end:
                    place, header = _value(data, place, STRUCT, 0)
                    sizes = [header.get(field) for field in (UNPACKED, PACKED)]
                    unpacked, packed = (n if isinstance(n, int) else -1 for n in sizes)
                    if min(unpacked, packed) < 0:
                        raise ValueError("a page has no size")
                    largest = max(largest, unpacked)
                    place += packed
    return largest


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _chunk(metadata: dict[int, Any]) -> ColumnChunk:
    places = [metadata[DATA], metadata.get(DICTIONARY) or metadata[DATA]]
    chunk = ColumnChunk(metadata[VALUES], min(places), metadata[SIZE])
    if not all(type(number) is int for number in (*chunk, *places)):
        raise TypeError("a size in the footer is not an integer")
    return chunk


def _value(data: mmap.mmap, place: int, kind: int, depth: int) -> tuple[int, Any]:
    """The end of a value, and the value: field -> value of a structure, None for a text."""
    if depth > DEPTH_LIMIT:
        raise ValueError("it nests too deep")
    if kind in NUMBERS:
        place, raw = _varint(data, place)
        return place, raw >> 1 ^ -(raw & 1)
    if kind in (TRUE, FALSE, BYTE):
        return place + 1, None
    if kind == DOUBLE:
        return place + 8, None
    if kind == BINARY:
        place, length = _varint(data, place)
        return place + length, None
    if kind in LISTS:
        head = _byte(data, place)
        place, count = (place + 1, head >> 4) if head < 0xF0 else _varint(data, place + 1)
        if count > len(data) - place:
            raise ValueError("a list is longer than the file")
        values = []
        for _ in range(count):
            place, value = _value(data, place, head & 15, depth + 1)
            values.append(value)
        return place, values
    if kind != STRUCT:
        raise ValueError("it holds a type that footers and page headers do not have")
    fields: dict[int, Any] = {}
    number = 0
    while head := _byte(data, place):
        place += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            place, raw = _varint(data, place)
            number = raw >> 1 ^ -(raw & 1)
        if kind not in (TRUE, FALSE):  # their value is in the kind
            place, fields[number] = _value(data, place, kind, depth + 1)
    return place + 1, fields


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 64:
        byte = _byte(data, place)
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return place, number
        shift += 7
    raise ValueError("it holds an endless number")


def _byte(data: mmap.mmap, place: int) -> int:
    if place >= len(data):
        raise ValueError("it ends too early")
    return data[place]
