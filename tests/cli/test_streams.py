"""Streams as shells, services and schedulers leave them: closed, or in an encoding that is not UTF-8."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from cola_cli.cli.console import print_json
from tests.conftest import cola_command

QUERY = "select 'né 你好 😀' as text"


def run(arguments: list[str], redirections: str = "", **variables: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `cola` started by a shell."""
    command = f"{shlex.join(cola_command(*arguments))} {redirections}"
    result = subprocess.run(
        ["bash", "-c", command], env=os.environ | variables, capture_output=True, text=True
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "utf-8"])
def test_a_text_that_the_encoding_lacks_is_escaped(encoding: str) -> None:
    code, out, _ = run(["sql", QUERY, "--json"], PYTHONIOENCODING=encoding)
    assert code == 0
    # latin-1 has the é, in a byte that is not UTF-8: JSON must be ASCII there
    assert json.loads(out)["rows"] == [["né 你好 😀"]]
    code, out, err = run(["sql", QUERY], PYTHONIOENCODING="ascii")
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == r"n\xe9 \u4f60\u597d \U0001f600"


def test_closed_streams_are_as_good_as_none(tmp_path: Path) -> None:
    good = ["sql", "select 1 as one"]
    assert run(good, "2>&-") == (0, "one\n1\n", "")
    assert run(good, ">&-") == (0, "", "")
    assert run(good, "<&- >&- 2>&-") == (0, "", "")
    assert run(["sql", "selec"], "2>&-")[0] == 2
    code, _, err = run(["sql", "selec"], ">&-")
    assert (code, err.startswith("cola: error:")) == (2, True)
    # a file that is opened must not become stdout or stderr
    corpus = tmp_path / "a.txt"
    corpus.write_text("\n\n".join(f"the cat sat on {n}" for n in range(99)))
    made = ["tokenize", str(corpus), "-o", str(tmp_path / "t"), "--vocab-size", "300"]
    assert run([*made, "--seq-len", "16"], "<&- >&- 2>&-")[0] == 0
    assert run(["verify", str(tmp_path / "t")])[0] == 0


def test_a_message_follows_streamed_text_on_a_line_of_its_own() -> None:
    command = cola_command("sample", "demo", "--prompt", "Tom was", "-n", 4000, "--quiet")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    read = os.read(process.stdout.fileno(), 7)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode == 130
    assert (read + rest).startswith(b"Tom was")
    assert b"\ncola: interrupted" in rest, rest


def test_json_is_always_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, "b": [1.5, (math.inf, "x")], 0.5: {"c": -math.inf}})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": None, "b": [1.5, [None, "x"]], "0.5": {"c": None}}
    assert "null" in captured.err
    code, out, err = run(["sql", "select 'nan'::float as n, '-inf'::double as i", "--json"])
    assert (code, json.loads(out)["rows"]) == (0, [[None, None]])
    assert err.count("\n") == 1


def test_memory_that_runs_out_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from cola_cli.cli.console import errors_shown

    for error in (
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: ..."),
        RuntimeError("std::bad_alloc"),
    ):
        with pytest.raises(typer.Exit), errors_shown(False):
            raise error
        assert "there is not enough memory" in capsys.readouterr().err
