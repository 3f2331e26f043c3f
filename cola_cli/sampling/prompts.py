"""Prompts from the command line or JSONL: one object a line with a `prompt`, and an `id` if wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cola_cli.artifacts.reading import decoded, reason, shown
from cola_cli.artifacts.rows import read_rows, rows_of
from cola_cli.errors import InputError, is_encodable

PIPE_LIMIT = 1 << 20  # bytes of a prompt
REMEDY = 'Write each prompt as {"id": ..., "prompt": "..."} on a line of its own.'


@dataclass(frozen=True)
class Prompt:
    """A prompt, the id it is answered under, and where it stands for error messages."""

    id: str | int
    text: str
    place: str


def given_prompts(texts: list[str]) -> list[Prompt]:
    """The prompts of `--prompt`, numbered from 0. Raises InputError for one that is not UTF-8."""
    found = [Prompt(i, text, f"--prompt '{shown(text, 40)}'") for i, text in enumerate(texts)]
    for prompt in found:
        if not is_encodable(prompt.text):
            raise InputError(f"{prompt.place} is not UTF-8.", "Give it in UTF-8.")
    return found


def piped_prompt(stream: BinaryIO) -> Prompt | None:
    """The text of a pipe or file, without the line feed at its end, as one prompt; None if it is empty.

    Raises InputError where it is not UTF-8, or too long.
    """
    data = stream.read(PIPE_LIMIT + 1)
    if len(data) > PIPE_LIMIT:
        raise InputError(
            f"standard input holds more than {PIPE_LIMIT:,} bytes.", "Give a shorter prompt."
        )
    try:
        text = decoded(data).removesuffix("\n")
    except ValueError as error:
        raise InputError(
            f"standard input is not UTF-8 ({reason(error)}).", "Give it in UTF-8."
        ) from None
    return Prompt(0, text, "standard input") if text else None


def read_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of a JSONL file, packed as .gz or .zst or not. Raises InputError naming the line."""
    yield from _prompts(read_rows(path), str(path))


def parse_prompts(stream: BinaryIO, name: str) -> Iterator[Prompt]:
    """The prompts of JSONL lines; `name` is the file in error messages."""
    yield from _prompts(rows_of(stream, name), name)


def not_empty(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """The same prompts. Raises InputError at the end of none."""
    prompt = None
    for prompt in prompts:
        yield prompt
    if prompt is None:
        raise InputError("there are no prompts.", "Give --prompt, or --prompts with some lines.")


def _prompts(rows: Iterable[tuple[int, dict[str, Any]]], name: str) -> Iterator[Prompt]:
    for count, (number, row) in enumerate(rows):
        place = f"{name}, line {number}"
        text = row.get("prompt")
        if not isinstance(text, str):
            raise InputError(f'{place} has no text under "prompt".', REMEDY)
        own = row.get("id", count)
        own = own if isinstance(own, str | int) else str(own)
        if not (is_encodable(text) and is_encodable(str(own))):
            raise InputError(
                f"{place} holds half of a surrogate pair.", "Correct or remove that line."
            )
        yield Prompt(own, text, place)
