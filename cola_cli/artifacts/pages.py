"""How much memory a Parquet file can take: what its footer claims, and what the headers of its pages say.

A row group of numbers takes as much as the footer claims, or an error where its pages hold less. For texts a
footer says nothing, but a page is unpacked into as many bytes as its own header says, and no value is larger
than its page. Headers are Thrift structures in the compact protocol.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Types in the compact protocol.
BOOLEANS, BYTE, NUMBERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
UNPACKED, PACKED = 2, 3  # the fields of a page header
DEPTH_LIMIT = 16
GROUP_LIMIT = 2 << 30  # bytes of a row group in memory; ours have some megabytes
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}


def require_group(metadata: Any, group: int) -> None:
    """Raise ValueError when a row group would take more than `GROUP_LIMIT` bytes of memory to read.

    `metadata` is that of the file. Texts count as nothing: only foreign corpora have them.
    """
    claimed = 0
    for column in range(metadata.num_columns):
        chunk, schema = metadata.row_group(group).column(column), metadata.schema.column(column)
        width = WIDTHS.get(schema.physical_type, max(schema.length, 0))
        claimed += chunk.num_values * width
        if not 0 <= claimed <= GROUP_LIMIT:
            raise ValueError(f"row group {group} claims {chunk.num_values} values of {schema.name}")


def largest_page(path: Path, metadata: Any, columns: Sequence[int]) -> int:
    """The unpacked bytes of the largest page of some columns of a Parquet file, by their number.

    Raises OSError, or ValueError where the pages do not follow one another as the footer says.
    """
    largest = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for group in range(metadata.num_row_groups):
            for column in columns:
                chunk = metadata.row_group(group).column(column)
                places = (chunk.dictionary_page_offset, chunk.data_page_offset)
                place = min(offset for offset in places if offset)
                end = place + chunk.total_compressed_size
                if not 0 <= place <= end <= len(data):
                    raise ValueError("its columns lie outside of it")
                while place < end:
                    place, fields = _structure(data, place, 0)
                    unpacked, packed = fields.get(UNPACKED, -1), fields.get(PACKED, -1)
                    if min(unpacked, packed) < 0:
                        raise ValueError("a page has no size")
                    largest = max(largest, unpacked)
                    place += packed
    return largest


def _structure(data: mmap.mmap, place: int, depth: int) -> tuple[int, dict[int, int]]:
    """Where a structure ends, and its whole numbers by field."""
    if depth > DEPTH_LIMIT:
        raise ValueError("a page header nests too deep")
    fields: dict[int, int] = {}
    number = 0
    while True:
        head = _byte(data, place)
        place += 1
        if head == 0:
            return place, fields
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            place, raw = _varint(data, place)
            number = _signed(raw)
        if kind in NUMBERS:
            place, raw = _varint(data, place)
            fields[number] = _signed(raw)
        elif kind not in BOOLEANS:  # their value is in the kind
            place = _skipped(data, place, kind, depth)


def _skipped(data: mmap.mmap, place: int, kind: int, depth: int) -> int:
    """Where a value of a kind that page headers hold, but that does not matter here, ends."""
    if kind in (BYTE, *BOOLEANS):
        return place + 1
    if kind in NUMBERS:
        return _varint(data, place)[0]
    if kind == DOUBLE:
        return place + 8
    if kind == BINARY:
        place, length = _varint(data, place)
        return place + length
    if kind in LISTS:
        head = _byte(data, place)
        place, count = (place + 1, head >> 4) if head < 0xF0 else _varint(data, place + 1)
        for _ in range(count):
            place = _skipped(data, place, head & 15, depth + 1)
        return place
    if kind == STRUCT:
        return _structure(data, place, depth + 1)[0]
    raise ValueError("a page header holds what none holds")


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 64:
        byte = _byte(data, place)
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return place, number
        shift += 7
    raise ValueError("a page header holds an endless number")


def _byte(data: mmap.mmap, place: int) -> int:
    if place >= len(data):
        raise ValueError("a page header ends too early")
    return data[place]


def _signed(number: int) -> int:
    return number >> 1 ^ -(number & 1)
