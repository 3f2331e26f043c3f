"""Generated answers on disk: JSONL, plain or zstd, one object an item.

Fields: `generate` (the raw generation), `ground_truth`, `choices` (list of options; absent or empty for open
answers), and any others, such as `id` and `prompt`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_cli.errors import InputError
from cola_cli.evaluation.scoring import Item

LINE_LIMIT = 16 << 20  # characters


def read_items(path: Path) -> list[Item]:
    """The items of a JSONL or JSONL.zst file. Raises InputError naming the line that is wrong."""
    items = []
    for number, row in read_rows(path):
        choices = row.get("choices") or []
        for name in ("generate", "ground_truth"):
            if not isinstance(row.get(name), str):
                raise InputError(
                    f"{path}, line {number}: the field {name!r} is missing or no text.",
                    "Each line needs generate, ground_truth and, for multiple choice, choices.",
                )
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise InputError(
                f"{path}, line {number}: the field 'choices' is no list of texts.",
                "Give the options as a list of strings.",
            )
        items.append(Item(row["generate"], row["ground_truth"], tuple(choices)))
    if not items:
        raise InputError(f"{path} holds no items.", "Name a file of generated answers.")
    return items


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line of a JSONL or JSONL.zst file; errors name the line."""
    import zstandard

    try:
        with path.open("rb") as raw:
            stream: Any = raw
            if path.suffix == ".zst":
                stream = zstandard.ZstdDecompressor().stream_reader(raw)
            text = io.TextIOWrapper(stream, encoding="utf-8")
            number = 0
            while line := text.readline(LINE_LIMIT):
                number += 1
                if len(line) == LINE_LIMIT:
                    raise InputError(f"{path}, line {number} is too long.", "Is it a JSONL file?")
                if line.strip():
                    yield number, _parse(path, number, line)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).", "Name a file.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 ({error.reason}).", "Convert it to UTF-8."
        ) from error
    except zstandard.ZstdError as error:
        raise InputError(f"{path} is not whole zstd data ({error}).", "Fetch it again.") from error


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, line {number} is not valid JSON ({error}).", "Correct that line."
        ) from error
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number} is no JSON object.", "Correct that line.")
    return row
