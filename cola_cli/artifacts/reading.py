"""Reading foreign files: bounded, from regular files alone, with errors that fit into one sentence."""

from __future__ import annotations

import codecs
import json
import os
import stat
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cola_cli.errors import ColaError, InputError, printable

RECORD_LIMIT = 64 << 20  # bytes of a record; cola writes some kilobytes
# A list of lists takes 25 times the bytes of its text in memory; this many values take 1 GiB at most.
VALUES_LIMIT = 8_000_000
# What packed files begin with.
PACKED_SIGNS = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
SHOWN = 300  # characters of a foreign text in a sentence

RecordT = TypeVar("RecordT")


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises OSError, or ValueError for a larger file, or a pipe or device, which might never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > limit:
            raise ValueError(f"it is larger than {limit >> 20} MiB")
        return stream.read(status.st_size)


def decoded(data: bytes) -> str:
    """A text in UTF-8, without the byte order mark that some editors begin files with.

    Raises ValueError for another encoding.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is {foreign_encoding(data) or 'not UTF-8'}") from error


def conversion(data: bytes) -> str:
    """The remedy for a file that is not UTF-8 and begins with, or holds, these bytes."""
    for sign, suffix in PACKED_SIGNS.items():
        if data.startswith(sign):
            return f"It is packed: let its name end in {suffix}."
    source = foreign_encoding(data) or "latin1"
    return f"Convert the file, for example with: iconv -f {source.lower()} -t utf-8."


def foreign_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 for a text that begins with these bytes; None for any other."""
    zeros = data.count(0) / max(1, len(data))
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) or zeros > 0.6:
        return "UTF-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or zeros > 0.25:
        return "UTF-16"
    return None


def parse_json(data: bytes | str, once: Callable[[str], bool] | None = None) -> Any:
    """The value of a JSON text. Raises ValueError unless it is valid, shallow, and fits into memory.

    once: whether an object that names this field twice is refused; else its last value counts.
    """
    require_few_values(data)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and once is not None:
            for name, count in Counter(name for name, _ in pairs).items():
                if count > 1 and once(name):
                    raise ValueError(f"the field {name!r} occurs twice")
        return found

    try:
        return json.loads(data, object_pairs_hook=members if once else None)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def read_record(
    path: Path,
    model: type[RecordT],
    remedy: str,
    error: type[ColaError] = InputError,
    limit: int = RECORD_LIMIT,
    toml: bool = False,
) -> RecordT:
    """The record in a JSON file, or in a TOML file (named so, or by `toml`); see `parse_record`."""
    data = read_file(path, remedy, error, limit)
    return parse_record(data, model, path, remedy, error, toml=toml or path.suffix == ".toml")


def read_file(
    path: Path, remedy: str, error: type[ColaError] = InputError, limit: int = RECORD_LIMIT
) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises `error` when it cannot be read."""
    try:
        return read_regular(path, limit)
    except (OSError, ValueError) as wrong:
        raise error(f"{path} cannot be read ({reason(wrong)}).", remedy) from wrong


def parse_record(
    data: bytes,
    model: type[RecordT],
    place: Path,
    remedy: str,
    error: type[ColaError] = InputError,
    what: str = "as expected",
    toml: bool = False,
) -> RecordT:
    """The content of a file at `place`, JSON or TOML, as a record of the type `model`.

    Types are strict: no text for a number, no 1 for true. Raises `error` naming the file and the wrong
    field, with the remedy, when the file is not such a record (is not `what`).
    """
    try:
        if toml:
            return TypeAdapter(model).validate_python(tomllib.loads(decoded(data)), strict=True)
        require_few_values(data)
        return TypeAdapter(model).validate_json(data.removeprefix(codecs.BOM_UTF8), strict=True)
    except ValidationError as wrong:
        raise error(f"{place} is not {what} ({reason(wrong)}).", remedy) from wrong
    except tomllib.TOMLDecodeError as wrong:
        raise error(f"{place} is not valid TOML ({reason(wrong)}).", remedy) from wrong
    except (ValueError, RecursionError) as wrong:
        raise error(f"{place} cannot be read ({reason(wrong)}).", remedy) from wrong


def require_few_values(data: bytes | str) -> None:
    """Raise ValueError for a JSON text whose values could fill the memory."""
    if len(data) > VALUES_LIMIT:  # fewer bytes cannot hold more values
        marks: tuple[Any, ...] = (b",", b"[", b"{") if isinstance(data, bytes) else (",", "[", "{")
        if sum(data.count(mark) for mark in marks) > VALUES_LIMIT:
            raise ValueError(f"it holds more than {VALUES_LIMIT:,} values")


def reason(error: object) -> str:
    """The first line of the message of an error, to be put into a ColaError, which makes it printable."""
    if isinstance(error, ValidationError):  # its first wrong field
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return f"{place}: {message}" if place else message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown(text: object, limit: int = SHOWN) -> str:
    """A foreign text as part of a sentence, control characters escaped: they could drive a terminal."""
    whole = str(text)
    kept = printable(whole[:limit])
    return kept if len(whole) <= limit else f"{kept}..."
