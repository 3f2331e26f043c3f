"""Rows of JSONL, plain or packed as .gz or .zst: one object a line, one line in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cola_cli.artifacts.artifact import Artifact
from cola_cli.artifacts.reading import conversion, decoded, parse_json, reason
from cola_cli.artifacts.unpacking import DAMAGED, unpacked
from cola_cli.errors import InputError

PART_SUFFIX = ".jsonl.zst"  # of the parts of samples and evaluation artifacts
LINE_LIMIT = 16 << 20  # bytes


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows of one part, packed."""
    import zstandard

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(zstandard.ZstdCompressor(level=9).compress(lines.encode()))


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line but empty ones. Raises InputError naming the file and line."""
    try:
        with path.open("rb") as raw:
            yield from rows_of(raw, path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}).", "Name a file.") from error


def rows_of(raw: BinaryIO, name: object) -> Iterator[tuple[int, dict[str, Any]]]:
    """`read_rows` of an open file, packed if `name` says so, which stands for it in messages."""
    number = 0
    try:
        stream = unpacked(name, raw)
        # Lines end at newlines alone: generated text may hold the other characters at which
        # str.splitlines cuts.
        while line := stream.readline(LINE_LIMIT):
            number += 1
            if len(line) == LINE_LIMIT:
                raise InputError(f"{name}, line {number} is too long.", "Is it a JSONL file?")
            if line.strip():
                yield number, _row(name, number, line)
    except DAMAGED as error:
        raise InputError(
            f"{name} is truncated or damaged ({reason(error)}).", "Fetch it again."
        ) from error


def artifact_rows(artifact: Artifact) -> Iterator[dict[str, Any]]:
    """The rows of all parts of a samples or evaluation artifact, in order."""
    for part in artifact.parts:
        for _, row in read_rows(artifact.part_file(part.index)):
            yield row


def _row(name: object, number: int, line: bytes) -> dict[str, Any]:
    try:
        text = decoded(line) if number == 1 else line.decode()
    except ValueError as error:
        raise InputError(f"{name}, line {number} is not UTF-8.", conversion(line)) from error
    try:
        row = parse_json(text, once=lambda name: True)
    except ValueError as error:
        raise InputError(
            f"{name}, line {number} is not valid JSON ({reason(error)}).", "Correct that line."
        ) from error
    if not isinstance(row, dict):
        raise InputError(f"{name}, line {number} is not a JSON object.", "Correct that line.")
    return row
