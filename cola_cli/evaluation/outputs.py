"""Generated answers on disk: JSONL, plain or packed as .gz or .zst, one object an item.

Fields: `generate` (the raw generation), `ground_truth`, `choices` (list of options; absent or empty for open
answers), and any others, such as `id` and `prompt`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cola_cli.artifacts.rows import read_rows
from cola_cli.errors import InputError
from cola_cli.evaluation.scoring import Item, require_choices


def read_items(path: Path) -> list[Item]:
    """The items of a file of answers. Raises InputError naming the line that is wrong."""
    items = []
    for number, row in read_rows(path):
        answer: dict[str, Any] = {n: _text(row.get(n)) for n in ("generate", "ground_truth")}
        for name, value in answer.items():
            if not isinstance(value, str):
                raise InputError(
                    f"{path}, line {number}: the field {name!r} is missing or not a text.",
                    "Each line needs generate, ground_truth and, for multiple choice, choices.",
                )
        choices = row.get("choices") or []
        texts = list(map(_text, choices)) if isinstance(choices, list) else choices
        options = require_choices(texts, f"{path}, line {number}")
        items.append(Item(answer["generate"], answer["ground_truth"], options))
    if not items:
        raise InputError(f"{path} holds no items.", "Name a file of generated answers.")
    return items


def _text(value: Any) -> Any:
    """A number as the text it is written as (the answer 4 of a sum); all else as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
