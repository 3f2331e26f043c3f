"""What screens look like on terminals of 60, 80 and 120 columns: own ones against files in `screens/`.

After a change that is meant: COLA_SCREENS=write pytest tests/cli/test_screens.py, and look at the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.cli.test_main import _in_a_terminal

HERE = Path(__file__).parent
WIDTHS = (60, 80, 120)
SCREENS = {
    "status": ["status", "run"],
    "settings": ["settings", "encode"],
}
OPENING = "Tom was a brave sailor who lived near the sea. One day he"


def screen(words: list[str], width: int) -> str:
    """What stands on the terminal, without colours."""
    sent = _in_a_terminal(words, HERE.parent / "format1", TERM="xterm", COLUMNS=str(width))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent).replace("\r\n", "\n")
    return "".join(f"{line.rstrip()}\n" for line in plain.splitlines())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_fits_its_terminal_and_is_as_it_was(name: str, width: int) -> None:
    shown = screen(SCREENS[name], width)
    assert max(map(len, shown.splitlines())) <= width
    kept = HERE / "screens" / f"{name}-{width}.txt"
    if os.environ.get("COLA_SCREENS") == "write":
        kept.write_text(shown)
    assert shown == kept.read_text()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("words", [["--help"], ["sample", "--help"]], ids=" ".join)
def test_help_fits_its_terminal(words: list[str], width: int) -> None:
    lines = screen(words, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) > 20


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sample_on_a_terminal_is_its_text(width: int) -> None:
    shown = screen(["sample", "demo", "--prompt", OPENING, "-n", "8", "--quiet"], width)
    piped = screen(["sample", "demo", "--prompt", OPENING, "-n", "8", "--quiet"], 200)
    assert shown.split() == piped.split()
    assert shown.startswith(OPENING)
