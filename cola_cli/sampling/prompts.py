"""Prompts from the command line or JSONL: one object a line with a `prompt`, and an `id` if wanted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cola_cli.artifacts.reading import is_encodable, reason, shown
from cola_cli.errors import InputError

LINE_LIMIT = 16 << 20  # characters


@dataclass(frozen=True)
class Prompt:
    """A prompt, the id it is answered under, and where it stands for error messages."""

    id: str | int
    text: str
    place: str


def given_prompts(texts: list[str]) -> list[Prompt]:
    """The prompts of `--prompt`, numbered from 0."""
    return [Prompt(i, text, f"--prompt '{shown(text, 40)}'") for i, text in enumerate(texts)]


def read_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of a JSONL file. Raises InputError naming the line."""
    try:
        with path.open(encoding="utf-8") as lines:
            yield from parse_prompts(lines, str(path))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}).", "Name a JSONL file of prompts."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8.", "Convert the file.") from error


def parse_prompts(lines: Iterable[str], name: str) -> Iterator[Prompt]:
    """The prompts of JSONL lines; `name` is the file in error messages."""
    count = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            row = json.loads(line) if len(line) <= LINE_LIMIT else None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{place} is not valid JSON ({reason(error)}).",
                'Write each prompt as {"id": ..., "prompt": "..."} on a line of its own.',
            ) from error
        row = row if isinstance(row, dict) else {}
        text = row.get("prompt")
        if not isinstance(text, str):
            raise InputError(
                f'{place} has no text under "prompt".',
                'Write each prompt as {"id": ..., "prompt": "..."} on a line of its own.',
            )
        own = row.get("id", count)
        own = own if isinstance(own, str | int) else str(own)
        if not (is_encodable(text) and is_encodable(str(own))):
            raise InputError(
                f"{place} holds half of a surrogate pair.", "Correct or remove that line."
            )
        yield Prompt(own, text, place)
        count += 1
