"""Scoring of generated answers, compatible with the released scorer, and the honest metrics beside it.

The compatible accuracy counts an answer as right under the rules of the authors' scorer. On multiple choice
it mostly measures whether an option was copied without error, so the share of answers that are a valid
option, the accuracy among those, and the level of chance stand beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from cola_cli.errors import InputError, UsageError

_NOT_WORD_OR_SPACE = re.compile(r"[^\w\s]")
_WHOLE_LETTER = re.compile(r"[\(\[]?\s*([A-Za-z])\s*[\)\]]?\.?")
_NAMED_LETTER = re.compile(
    r"(?i)\b(?:final\s+answer|answer|option|choice)\b\s*(?:is|=|:|：)?\s*"
    r"[\(\[]?\s*([A-Za-z])\s*[\)\]]?(?=\s|$|[.,;:!?])"
)
_BRACKETED_LETTER = re.compile(r"[\(\[]\s*([A-Za-z])\s*[\)\]]")
_BRACKETED_LETTER_LIMIT = 40  # characters; in longer texts a bracketed letter says nothing
_ANSWER_PREFIX = re.compile(
    r"(?i)^(the\s+)?(correct\s+)?(final\s+)?(answer|option|choice)\b\s*(is|=|:|：)?\s*"
)
_ANSWER_SEGMENT = re.compile(r"(?i)\b(?:final\s+answer|answer)\b\s*(?:is|=|:|：)?\s*(.+)$")
_CLOSE_ENOUGH = 0.9  # similarity at which a corrupted copy counts as the option


@dataclass(frozen=True)
class Item:
    """One scored item: what the model wrote, the right answer, and the options (empty: open answer)."""

    generated: str
    ground_truth: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`correct` by the released scorer's rule; `option` is the letter the answer maps to, or None."""

    correct: bool
    option: str | None = None


def first_line(text: str) -> str:
    """The text before the first newline that has a word character somewhere before it."""
    for match in re.finditer("\n", text):
        if re.search(r"\w", text[: match.start()]):
            return text[: match.start()]
    return text


def normalise(text: str) -> str:
    """Lower case, everything but word characters and spaces deleted, spaces collapsed."""
    return " ".join(_NOT_WORD_OR_SPACE.sub("", str(text).lower().strip()).split())


def similarity(first: str, second: str) -> float:
    """Ratio of matching characters of the normalised texts, 1.0 for two empty ones."""
    return SequenceMatcher(None, normalise(first), normalise(second)).ratio()


def choice_of(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that an answer means, by letter or by text; None when it means none."""
    for candidate in (_answer_segment(text), text):
        letter = _letter(candidate, len(choices)) or _letter_by_text(candidate, choices)
        if letter:
            return letter
    return None


def _letter(text: str, count: int) -> str | None:
    text = text.strip()
    found = []
    if whole := _WHOLE_LETTER.fullmatch(text):
        found.append(whole.group(1))
    if named := _NAMED_LETTER.findall(text):
        found.append(named[-1])
    if len(text) <= _BRACKETED_LETTER_LIMIT and (bracketed := _BRACKETED_LETTER.findall(text)):
        found.append(bracketed[-1])
    valid = (letter.upper() for letter in found if ord(letter.upper()) - ord("A") < count)
    return next(valid, None)


def _letter_by_text(text: str, choices: Sequence[str]) -> str | None:
    options = [normalise(choice) for choice in choices]
    answer = normalise(text)
    if not answer:
        return None
    stripped = normalise(_ANSWER_PREFIX.sub("", text.strip(), count=1))
    for candidate in (answer, stripped):
        if candidate and candidate in options:
            return nth_letter(options.index(candidate))
    if not stripped:
        return None
    contained = [index for index, option in enumerate(options) if option and option in stripped]
    if len(contained) == 1:
        return nth_letter(contained[0])
    ratios = [similarity(stripped, option) for option in options]
    if ratios and max(ratios) >= _CLOSE_ENOUGH:
        return nth_letter(ratios.index(max(ratios)))
    return None


def nth_letter(index: int) -> str:
    """The letter of an option: 0 is A."""
    return chr(ord("A") + index)


def _answer_segment(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if match := _ANSWER_SEGMENT.search(line):
            return match.group(1)
    return text.strip()


def _score_first_word(item: Item) -> Verdict:
    answer, truth = normalise(first_line(item.generated)), normalise(item.ground_truth)
    return Verdict(answer.split()[:1] == truth.split()[:1] and bool(truth))


def _score_equality(item: Item) -> Verdict:
    answer = normalise(first_line(item.generated))
    options = [normalise(choice) for choice in item.choices]
    option = nth_letter(options.index(answer)) if answer and answer in options else None
    return Verdict(answer == normalise(item.ground_truth), option)


def _score_choice(item: Item) -> Verdict:
    answer = first_line(item.generated)
    option = choice_of(answer, item.choices)
    truth = _letter(item.ground_truth, len(item.choices)) or _letter_by_text(
        item.ground_truth, item.choices
    )
    agrees = option is not None and option == truth
    return Verdict(agrees or normalise(answer) == normalise(item.ground_truth), option)


SCORERS: dict[str, Callable[[Item], Verdict]] = {
    "lambada": _score_first_word,
    "mmlu": _score_choice,
    "obqa": _score_choice,
    "hellaswag": _score_equality,
    "race": _score_choice,
    "siqa": _score_choice,
    "squad": _score_equality,
    "story_cloze": _score_equality,
}


def score(task: str, item: Item) -> Verdict:
    """Judge one item by the released scorer's rule of its task (a key of SCORERS)."""
    return SCORERS[task](item)


def require_task(task: str) -> None:
    """Raise UsageError, with the names of all tasks, when there is no such task."""
    if task not in SCORERS:
        raise UsageError(f"there is no task {task!r}.", f"Known: {', '.join(sorted(SCORERS))}.")


def require_choices(choices: Any, place: str) -> tuple[str, ...]:
    """The options of an item at `place`. Raises InputError unless they are a list of texts."""
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise InputError(
            f"{place}: the field 'choices' is not a list of texts.",
            "Give the options as a list of strings.",
        )
    return tuple(choices)
