"""Every command that README and docs show exists, with its options; the quick ones run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from cola_cli.cli.main import app
from tests.conftest import Run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENDS = {"|", ">", "&&", "<", "2>", ">>", "&"}
QUICK = ("sample demo", "settings", "schema", "inspect demo", "doctor")  # these run


def commands() -> list[tuple[str, list[str]]]:
    """(place, words behind `cola`) of every command line in a block."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                starts = [n for n, word in enumerate(words) if n == 0 or words[n - 1] in ENDS]
                for start in (n + 1 for n in starts if words[n] == "cola"):
                    end = next((n for n in range(start, len(words)) if words[n] in ENDS), None)
                    found.append((f"{page.name}: {line.strip()[:70]}", words[start:end]))
    return found


COMMANDS = commands()


@pytest.mark.parametrize(("place", "words"), COMMANDS, ids=[place for place, _ in COMMANDS])
def test_a_command_of_the_documentation_can_be_parsed(place: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="cola")
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words), parent=context)  # raises for what is wrong


@pytest.mark.parametrize(
    "words", sorted({tuple(w) for _, w in COMMANDS if " ".join(w).startswith(QUICK)}), ids=" ".join
)
def test_a_quick_command_of_the_documentation_runs(words: tuple[str, ...], cola: Run) -> None:
    if any(word.endswith((".jsonl", ".toml")) or word == "--watch" for word in words):
        pytest.skip("it needs a file of the reader's, or a terminal")
    few = ["--max-new-tokens", 4] if words[0] == "sample" else []
    cola(*words, *few)


def test_python_blocks_are_python() -> None:
    for page in PAGES:
        for block in re.findall(
            r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            compile(block, str(page), "exec")
