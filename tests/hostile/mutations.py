"""Hostile variants of real files: bytes flipped, cut, spliced; JSON values replaced; headers that lie."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Iterator
from typing import Any

Mutant = tuple[str, bytes]  # a label to find it again, and the content

DEEP = 100_000
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**32 - 1, 2**63, 10**30, -(2**63), 1.5, 1e308, float("nan"),
    float("inf"), "", "5", "text", "..", "../x", "/etc/passwd", "a/../../b", "a\0b", "\x1b[2J\x07", "\n",
    "\ud800", "\u2028", "x" * 5000, [], {}, [[]], [1, 2], {"a": 1}, ["a"], {"": {"": {}}},
]  # fmt: skip
SPLICES = [
    b"\x00", b"\x00" * 64, b"\xff", b"\xff" * 8, b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n",
    b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"[" * 2000, b'{"a":' * 2000, b"-", b"1e999", b"NaN",
    b"9" * 5000, b"\\ud800", b"\\u0000", b"\x1b[31m", b"null", b"true", b"PAR1", b"\x80\x04N.", b"../", b"=",
]  # fmt: skip


def flipped(data: bytes, places: list[int]) -> Iterator[Mutant]:
    """One bit flipped at each place (counted in bits)."""
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        yield f"bit {place} flipped", bytes(changed)


def cut(data: bytes, places: list[int]) -> Iterator[Mutant]:
    """The file ends early, at each place."""
    for place in places:
        yield f"cut to {place} bytes", data[:place]


def spliced(data: bytes, source: random.Random, focus: tuple[int, int]) -> Iterator[Mutant]:
    """Without end: pieces put in, over, doubled or taken out, mostly within `focus`."""
    while True:
        begin, end = focus if source.random() < 0.8 else (0, len(data))
        changed = data
        steps = source.choice((1, 1, 1, 2, 5))
        for _ in range(steps):
            place = source.randint(begin, max(begin, end))
            length = source.choice((0, 1, 1, 2, 4, 8, 100))
            piece = source.choice((*SPLICES, source.randbytes(4), data[place : place + 20]))
            changed = changed[:place] + piece + changed[place + length :]
        yield f"{steps} splices", changed


def json_mutants(document: Any, source: random.Random) -> Iterator[tuple[str, Any]]:
    """Every value of a JSON document replaced by every hostile one, left out, or given company; shuffled."""
    places = list(_places(document))
    changes: list[tuple[tuple[Any, ...], str, Any]] = [
        (place, "=", value) for place in places for value in VALUES
    ]
    changes += [(place, "left out", None) for place in places if place]
    changes += [(place, "joined by", value) for place in places for value in VALUES[::6]]
    source.shuffle(changes)
    for place, change, value in changes:
        mutant = _changed(document, place, change, value)
        if mutant is not _UNCHANGED:
            yield f"{'.'.join(map(str, place)) or 'document'} {change} {value!r:.40}", mutant


def json_bytes(document: Any) -> bytes:
    """A JSON text; may hold NaN and halves of surrogate pairs, as hostile ones do."""
    return json.dumps(document).encode()


def nested(depth: int) -> list[Mutant]:
    """JSON texts of great depth."""
    return [
        (f"{depth} lists", b"[" * depth + b"]" * depth),
        (f"{depth} open lists", b"[" * depth),
        (f"{depth} objects", b'{"a":' * depth + b"1" + b"}" * depth),
    ]


def with_header(data: bytes, header: bytes) -> bytes:
    """A safetensors file with another header, its length put right."""
    length = struct.unpack("<Q", data[:8])[0]
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def safetensors_header(data: bytes) -> Any:
    """The header of a safetensors file."""
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def header_lengths(data: bytes) -> Iterator[Mutant]:
    """A safetensors file whose header claims other lengths."""
    true = struct.unpack("<Q", data[:8])[0]
    for claim in (
        0,
        1,
        2,
        true - 1,
        true + 1,
        len(data) - 8,
        len(data),
        2**31,
        2**40,
        2**63,
        2**64 - 1,
    ):
        yield f"header of {claim} bytes claimed", struct.pack("<Q", claim) + data[8:]


def parquet_footer(data: bytes) -> tuple[int, int]:
    """Where the footer of a Parquet file lies."""
    length = struct.unpack("<I", data[-8:-4])[0]
    return len(data) - 8 - length, len(data) - 8


def lying_footers(data: bytes, rows: int) -> Iterator[Mutant]:
    """A Parquet file of `rows` rows whose footer claims others, in the file, the groups or the columns.

    Thrift's compact protocol writes them as `0x16`, then the number as a zigzag varint.
    """
    begin, end = parquet_footer(data)
    footer = data[begin:end]
    true = b"\x16" + _varint(2 * rows)
    places = [match.start() for match in re.finditer(re.escape(true), footer)]
    assert places, "no count of rows found"
    for claim in (0, 1, rows - 1, rows + 1, 10**9, 2**31, 2**40, 2**62, -1):
        lie = b"\x16" + _varint(2 * claim if claim >= 0 else -2 * claim - 1)
        yield f"footer claims {claim} rows everywhere", _footer(data, footer.replace(true, lie))
        for place in places:
            one = footer[:place] + lie + footer[place + len(true) :]
            yield f"footer claims {claim} rows at {place}", _footer(data, one)
    for claim in (0, 1, len(footer) - 1, len(data), 2**31, 2**32 - 1):
        yield f"footer of {claim} bytes claimed", data[:-8] + struct.pack("<I", claim) + b"PAR1"


def _footer(data: bytes, footer: bytes) -> bytes:
    begin, _ = parquet_footer(data)
    return data[:begin] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _varint(number: int) -> bytes:
    out = bytearray()
    while True:
        out.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(value, dict):
        for name, entry in list(value.items())[:60]:
            yield from _places(entry, (*place, name))
    elif isinstance(value, list):
        for index, entry in enumerate(value[:8]):
            yield from _places(entry, (*place, index))


_UNCHANGED = object()


def _changed(document: Any, place: tuple[Any, ...], change: str, value: Any) -> Any:
    if not place:
        if change == "=":
            return value
        return {**document, "surplus": value} if isinstance(document, dict) else _UNCHANGED
    mutant = copy.deepcopy(document)
    node = mutant
    for step in place[:-1]:
        node = node[step]
    if change == "=":
        node[place[-1]] = value
    elif change == "left out":
        del node[place[-1]]
    elif isinstance(node[place[-1]], dict):
        node[place[-1]][value if isinstance(value, str) else "surplus"] = value
    elif isinstance(node[place[-1]], list):
        node[place[-1]].append(value)
    else:
        return _UNCHANGED
    return mutant
