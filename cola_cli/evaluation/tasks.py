"""The eight tasks: their data, their prompt templates, and the prompts made of both.

Data is JSONL (or JSONL.zst): an object an item with `answer`, `choices` where the task has options, an `id`
if wanted, and the texts that the template names (see docs/evaluation.md). Prompts end without a space or a
newline, and the model is to write the text of the answer, not its letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cola_cli.artifacts.reading import read_record
from cola_cli.artifacts.rows import read_rows
from cola_cli.errors import InputError
from cola_cli.evaluation.scoring import nth_letter, require_choices

_FIELD = re.compile(r"\{(\w+)\}")
_OPTIONS = "options"  # the field of a template that stands for the lettered options


@dataclass(frozen=True)
class Question:
    """One item ready to be asked: the whole prompt, the right answer, and the options, if any."""

    id: str | int
    prompt: str
    ground_truth: str
    choices: tuple[str, ...]
    place: str


class Template(BaseModel):
    """How items become prompts: `head`, the worked `examples`, then the item, apart by a blank line.

    `item` names fields of the data as {field}; {options} stands for the options, a line each, written as
    `option` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: str = Field(min_length=1)
    head: str = ""
    option: str = "({letter}) {text}"
    examples: list[dict[str, Any]] = []

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that an item must have."""
        return tuple(name for name in _FIELD.findall(self.item) if name != _OPTIONS)

    @property
    def has_options(self) -> bool:
        return _OPTIONS in _FIELD.findall(self.item)

    def prompt(self, row: Mapping[str, Any]) -> str:
        """The prompt of a checked item."""
        shots = [f"{self._filled(example)} {example['answer']}" for example in self.examples]
        pieces = [*([self.head] if self.head else []), *shots, self._filled(row)]
        return "\n\n".join(pieces)

    def _filled(self, row: Mapping[str, Any]) -> str:
        values = {name: row[name] for name in self.texts}
        if self.has_options:
            values[_OPTIONS] = "\n".join(
                _substituted(self.option, {"letter": nth_letter(index), "text": choice})
                for index, choice in enumerate(row["choices"])
            )
        return _substituted(self.item, values)


def built_in_template(task: str) -> Template:
    """The template of a task; 0 worked examples for LAMBADA, 1 for SQuAD and RACE, else 2."""
    return read_template(Path(__file__).parent / "templates" / f"{task}.toml")


def read_template(path: Path) -> Template:
    """The template in a TOML file. Raises InputError saying what is wrong with it."""
    remedy = "A template has item, and if wanted head, option and [[examples]]."
    template = read_record(path, Template, remedy, toml=True)
    for number, example in enumerate(template.examples, start=1):
        check_row(example, template, f"{path}, example {number}")
    return template


def check_row(
    row: Mapping[str, Any], template: Template, place: str, truth: str = "answer"
) -> None:
    """Raise InputError when an item lacks what the template or the scoring needs."""
    needed = (*template.texts, truth)
    for field in needed:
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise InputError(
                f"{place}: the field {field!r} is missing or empty.",
                f"Each item needs {', '.join(needed)} as text.",
            )
    choices = require_choices(row.get("choices") or [], place)
    if template.has_options and not 2 <= len(choices) <= 26:
        raise InputError(f"{place}: has {len(choices)} choices.", "Give it 2 to 26 choices.")
    # the right answer of a ready-made prompt may be a letter
    if truth == "answer" and choices and row[truth] not in choices:
        raise InputError(
            f"{place}: the answer {row[truth]!r} is not one of the choices.",
            "Write the answer as its choice is written.",
        )


def read_questions(path: Path, template: Template, limit: int | None = None) -> list[Question]:
    """The items of a data file as questions, the first `limit` of them."""
    return _questions(path, template, "answer", limit)


def read_ready_questions(path: Path, limit: int | None = None) -> list[Question]:
    """Ready-made prompts, to be asked verbatim: `prompt`, `ground_truth` and, if any, `choices` a line."""
    return _questions(path, Template(item="{prompt}"), "ground_truth", limit)


def _questions(path: Path, template: Template, truth: str, limit: int | None) -> list[Question]:
    """The items of a file whose field `truth` is the right answer."""
    found: list[Question] = []
    for number, row in read_rows(path):
        place = f"{path}, line {number}"
        check_row(row, template, place, truth)
        found.append(
            Question(
                id=_id(row, len(found)),
                prompt=template.prompt(row),
                ground_truth=row[truth],
                choices=tuple(row.get("choices") or ()),
                place=place,
            )
        )
        if len(found) == limit:
            break
    return _not_empty(found, path)


def _not_empty(found: list[Question], path: Path) -> list[Question]:
    if not found:
        raise InputError(f"{path} holds no items.", "Name a file of task data.")
    seen: dict[str | int, str] = {}
    for question in found:
        if question.id in seen:
            raise InputError(
                f"{question.place}: the id {question.id!r} is also that of {seen[question.id]}.",
                "Give every item an id of its own, or none.",
            )
        seen[question.id] = question.place
    return found


def _id(row: Mapping[str, Any], number: int) -> str | int:
    own = row.get("id", number)
    return own if isinstance(own, str | int) else str(own)


def _substituted(text: str, values: Mapping[str, str]) -> str:
    # Not str.format: data may hold braces, and a template must not access attributes.
    return _FIELD.sub(lambda match: values.get(match.group(1), match.group(0)), text)
