"""Whatever a user types, reads or closes is not a "fault in cola": command lines drawn by the commit."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.cli.odd_words import LINES, commands, prepare
from tests.conftest import Run, cola_command, drawn_seed

ROOT = Path(__file__).resolve().parents[2]
COUNT = 4  # lines of each command


def test_every_command_has_a_line() -> None:
    talking = {
        "chat",
        "serve",
    }  # these go on until they are told to stop: test_chat.py, tests/serving
    assert commands().keys() - talking == LINES.keys()


def test_odd_command_lines_end_in_a_result_or_a_sentence() -> None:
    command = [sys.executable, "-m", "tests.cli.odd_words", "--count", str(COUNT)]
    result = subprocess.run(
        [*command, "--seed", str(drawn_seed())],
        cwd=ROOT, env=os.environ | {"COLA_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 faults" in result.stdout


FOUND = (
    ("verify tokens " + "x" * 300, 4, "cannot be used (File name too long)"),
    ("inspect latents --rows 9223372036854775808", 2, "--rows"),
    ("sql '\n'", 2, "the query is empty"),
    ("sql ' -- nothing'", 2, "the query is empty"),
    ("export prior -o out --max-shard-gib inf", 2, "--max-shard-gib inf"),
    ("export prior -o out --max-shard-gib nan", 2, "--max-shard-gib nan"),
    ("train vae tokens -o out --preset tiny --threads 18446744073709551616", 2, "--threads"),
    ("sample prior --prompts '' -n 4", 2, "--prompts names no file"),
    ("verify --repair ''", 2, "it has no name"),
    ("sample prior --prompt Anna -n 18446744073709551616", 2, "max_new_tokens"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd")
    prepare(path)
    return path


@pytest.mark.parametrize(("line", "code", "said"), FOUND)
def test_lines_that_were_faults_are_told(
    cola: Run, folder: Path, line: str, code: int, said: str
) -> None:
    assert said in cola(*shlex.split(line), cwd=folder, expect=code).stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_streams_and_surroundings_that_are_odd_are_no_fault(folder: Path, name: str) -> None:
    """Streams that are closed, an encoding that lacks everything, a terminal that is none."""
    line = shlex.join(cola_command(*name.split(), *shlex.split(LINES[name])))
    variables = {"PYTHONIOENCODING": "ascii", "TERM": "", "COLUMNS": "x", "CXX": "none"}
    for redirections in ("<&- >&- 2>&-", ">&-", "2>&-"):
        result = subprocess.run(
            ["bash", "-c", f"{line} {redirections}"],
            cwd=folder, env=os.environ | variables, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode in (0, 2, 3, 4, 5), (redirections, result.stderr)
        assert "a fault in cola" not in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", commands())
def test_an_empty_word_is_not_the_current_folder(name: str) -> None:
    """Path makes `.` of it, and a variable that is not set is a common mistake."""
    command, line = commands()[name], shlex.split(LINES.get(name, "demo"))
    context = command.make_context("cola", [], resilient_parsing=True)
    names = [one.opts[-1] for one in command.get_params(context)]
    options = [name for name in names if name[0] == "-" and name != "--help"]
    variants = [[*line[:place], "", *line[place + 1 :]] for place in range(len(line))]
    variants += [[*line, option, ""] for option in options]
    refused: Any = (
        typer.BadParameter.__base__
    )  # what parsing raises, of which typer exports only some
    for words in variants:
        try:
            read = command.make_context("cola", words).params
        except refused:
            continue
        for value in read.values():
            assert Path() not in (value if isinstance(value, list) else [value]), words
