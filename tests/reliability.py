"""docs/reliability.md: the page that the harness of faults begins, and the sections that others add to it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
FAULTS, RANKS, HISTORIES = "", "Several processes", "Histories"
FLIPPED, HOSTILE = "A flipped byte", "Hostile files"
KINDS = "Other kinds of fault"  # written by hand
ORDER = (FAULTS, RANKS, HISTORIES, FLIPPED, HOSTILE, KINDS)
_HEADINGS = re.compile(rf"^## ({'|'.join(ORDER[1:])})\n", re.MULTILINE)


def write_section(section: str, text: str, page: Path = PAGE) -> None:
    """Replace one section of the page, FAULTS being all before the others; `text` has no heading of it."""
    before = page.read_text() if page.exists() else ""
    first, *others = _HEADINGS.split(before)
    found = {FAULTS: first} | dict(zip(others[::2], others[1::2], strict=True)) | {section: text}
    pieces = [
        (f"## {name}\n\n" if name else "") + found[name].strip() + "\n"
        for name in ORDER
        if name in found
    ]
    page.write_text("\n".join(pieces))
