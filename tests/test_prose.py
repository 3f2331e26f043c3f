"""What people read is plain technical English: a list of turns to avoid, with the words to use instead."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

import cola_cli

ROOT = Path(cola_cli.__file__).parent
PAGES = [
    ROOT.parent / "README.md",
    ROOT.parent / "SECURITY.md",
    *sorted((ROOT.parent / "docs").glob("*.md")),
]
FORBIDDEN = {
    r"(?i)(?<!there )\b(is|be)( of)? no\b(?! longer| more)": "is not a",
    r"(?i)(?<!there )\bare no\b(?! longer| more)": "are not",
    r"\b(is|are|was|were) none\b": "there is no, there are no, is missing",
    r"\banew\b": "again, from the start",
    r"\bexclude each other\b": "cannot be combined",
    r"\bguidance within\b": "guidance built in",
    r"\bcan(not)? be had\b": "is available",
    r"\bcounted is\b": "counts",
    r"\bno whole\b": "not a whole",
    r"\bguidance\b.{0,40} within[.,;\"]": "built in",
    r"\bworked off\b": "computed, done",
    r"\bof like \w+": "of similar",
    r"\bthere (is|are) not[.,;\"]": "there is no ..., ... is missing",
    r"\bwhat came of\b": "the result of",
    r"\bcan(not)? be helped\b": "is possible",
    r"\bfigures\b": "metrics, charts, numbers",
    r"(?i)\b(a|an|the|each|every|one|this|paper's) figure\b(?! \d)": "metric, chart, number",
}


def texts(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every string and comment of a Python file, of every line of another."""
    if path.suffix != ".py":
        return list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    return [(token.start[0], token.string) for token in tokens if token.type in kinds]


@pytest.mark.parametrize("path", [*sorted(ROOT.rglob("*.py")), *PAGES], ids=lambda p: p.name)
def test_nothing_that_people_read_uses_a_forbidden_turn(path: Path) -> None:
    for line, text in texts(path):
        flat = " ".join(text.split())
        for turn, better in FORBIDDEN.items():
            found = re.search(turn, flat)
            assert not found, f"{path}, line {line}: {found[0]!r}; say {better!r}: {flat[:200]}"
