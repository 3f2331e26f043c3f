"""Generated answers on disk: JSONL, plain or packed as .gz or .zst, one object an item.

Fields: `generate` (the raw generation), `ground_truth`, `choices` (list of options; absent or empty for open
answers), and any others, such as `id` and `prompt`.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_cli.artifacts.reading import reason
from cola_cli.corpus.documents import unpacked
from cola_cli.errors import InputError
from cola_cli.evaluation.scoring import Item

LINE_LIMIT = 16 << 20  # characters


def read_items(path: Path) -> list[Item]:
    """The items of a file of answers. Raises InputError naming the line that is wrong."""
    items = []
    for number, row in read_rows(path):
        answer: dict[str, Any] = {n: _text(row.get(n)) for n in ("generate", "ground_truth")}
        for name, value in answer.items():
            if not isinstance(value, str):
                raise InputError(
                    f"{path}, line {number}: the field {name!r} is missing or no text.",
                    "Each line needs generate, ground_truth and, for multiple choice, choices.",
                )
        choices = row.get("choices") or []
        texts: list[Any] = list(map(_text, choices)) if isinstance(choices, list) else [None]
        if not all(isinstance(one, str) for one in texts):
            raise InputError(
                f"{path}, line {number}: the field 'choices' is no list of texts.",
                "Give the options as a list of strings.",
            )
        items.append(Item(answer["generate"], answer["ground_truth"], tuple(texts)))
    if not items:
        raise InputError(f"{path} holds no items.", "Name a file of generated answers.")
    return items


def _text(value: Any) -> Any:
    """A number as the text it is written as (the answer 4 of a sum); all else as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line of JSONL, plain or packed; errors name the line."""
    try:
        with path.open("rb") as raw:
            text = io.TextIOWrapper(unpacked(path, raw), encoding="utf-8")
            number = 0
            while line := text.readline(LINE_LIMIT):
                number += 1
                if len(line) == LINE_LIMIT:
                    raise InputError(f"{path}, line {number} is too long.", "Is it a JSONL file?")
                if line.strip():
                    yield number, _parse(path, number, line)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 ({error.reason}).", "Convert it to UTF-8."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is truncated or damaged ({reason(error)}).", "Fetch it again."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}).", "Name a file.") from error


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, line {number} is not valid JSON ({reason(error)}).", "Correct that line."
        ) from error
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number} is no JSON object.", "Correct that line.")
    return row
