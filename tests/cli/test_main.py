"""Manners of the command line as a whole."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cola_cli.cli import settings
from cola_cli.cli.main import ORDER, app
from cola_cli.errors import InputError, OutputConflict
from cola_cli.settings import TABLES
from tests.conftest import ENTRY, Run, cola_command


def _commands(command: object, name: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = getattr(command, "commands", None)
    if children is None:
        return [name]
    return [path for child in children for path in _commands(children[child], (*name, child))]


COMMANDS = _commands(typer.main.get_command(app))


def _loaded(code: str) -> set[str]:
    """The modules in memory after some code in a process of its own."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_help_loads_little_beside_typer_and_rich() -> None:
    """Modules are counted, not seconds: a count is the same on a busy machine."""
    print_help = (
        "import contextlib, io\n"
        "from cola_cli.cli.main import app\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    app(['--help'])"
    )
    bare, loaded = _loaded("import typer, rich.console, rich.table"), _loaded(print_help)
    assert not loaded & {"torch", "pyarrow", "duckdb", "numpy", "tokenizers", "pydantic"}
    assert "typer.rich_utils" in loaded  # it was printed
    assert len(loaded) <= 2.5 * len(bare), sorted(loaded - bare)


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(name: tuple[str, ...]) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, [*name, "--help"])
    assert result.exit_code == 0
    assert f"cola {' '.join(name)}" in " ".join(result.stdout.split())
    assert "Example:" in result.stdout


def test_help_lists_every_command_once_in_the_order_of_the_panels() -> None:
    listed = typer.main.get_command(app).list_commands(None)  # type: ignore[attr-defined]
    assert listed == ORDER
    hidden = {
        name for name, command in typer.main.get_command(app).commands.items() if command.hidden
    }  # type: ignore[attr-defined]
    assert hidden == {"score", "scaling"}, "names of the version before"
    assert set(listed) == {name[0] for name in COMMANDS} - hidden


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_can_answer_in_json_and_show_tracebacks(name: tuple[str, ...]) -> None:
    flags = {flag for parameter in _parameters(name) for flag in parameter.opts}
    assert {"--json", "--debug"} <= flags


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_is(name: tuple[str, ...]) -> None:
    assert [parameter.name for parameter in _parameters(name) if not parameter.help] == []


def _parameters(name: tuple[str, ...]) -> list[Any]:
    command: Any = typer.main.get_command(app)
    for step in name:
        command = command.commands[step]
    return list(command.get_params(command.make_context("cola", [], resilient_parsing=True)))


def test_flags_of_settings_say_what_their_fields_say() -> None:
    steps = next(p for p in _parameters(("sample",)) if p.name == "steps")
    field = TABLES["sample"].model_fields["steps"]
    assert steps.help == field.description


def test_a_dry_run_says_where_each_value_came_from(cola: Run, tmp_path: Path) -> None:
    from tests.artifacts.test_promises import make

    make(tmp_path / "tokens")
    (tmp_path / "text.txt").write_text("Tom was a brave sailor.")
    (tmp_path / "c.toml").write_text('[tokenize]\nvocab_size = 300\nnormalize = "nfc"\n')
    given = ("--preset", "tiny", "--config", "c.toml", "--seed", "3", "--set", "part_bytes=9")
    command = ("tokenize", "text.txt", "-o", "out", "--dry-run", *given)
    environment = os.environ | {"COLA_TOKENIZE__NORMALIZE": "none"}
    origins = json.loads(cola(*command, "--json", env=environment).stdout)["origins"]
    assert origins == {
        "vocab_size": "c.toml",
        "seq_len": "preset tiny",
        "normalize": "variable COLA_TOKENIZE__NORMALIZE",
        "part_bytes": "--set",
        "seed": "--seed",
    }
    printed = cola(*command, env=environment).stdout
    assert "seq_len = 128  # preset tiny\n" in printed
    assert 'documents = "blank-line"\n' in printed


def test_settings_are_explained_and_the_nearest_is_suggested(cola: Run) -> None:
    found = json.loads(cola("settings", "prior", "train.steps", "--json").stdout)
    assert [one["name"] for one in found["settings"]] == ["train.steps"]
    assert found["settings"][0]["about"] == "Steps of the run."
    assert "train.timeout" in cola("settings", "prior", "train").stdout
    assert "Did you mean train.steps?" in cola("settings", "prior", "train.stepz", expect=2).stderr
    assert "Did you mean prior?" in cola("settings", "pior", expect=2).stderr


def test_init_writes_a_file_once(cola: Run, tmp_path: Path) -> None:
    cola("init", "--preset", "tiny")
    assert "unset" in (tmp_path / "cola.toml").read_text()
    assert "cola.toml exists" in cola("init", expect=3).stderr
    assert cola("init", "--preset", "tinny", "-o", "x", expect=2).stderr


def test_the_names_of_the_version_before_still_work(cola: Run) -> None:
    for old in (["score"], ["scaling", "plan"]):
        assert "Usage" in cola(*old, "--help").stdout
        assert old[0] not in cola("--help").stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cola tok", "tokenize"),
        ("cola train p", "prior"),
        ("cola encode --thr", "--threads"),
        ("cola sample m --solver h", "heun"),
        ("cola train prior l --mode j", "joint"),
        ("cola train prior l --preset p", "paper-2b"),
    ],
)
def test_the_shell_completes_commands_and_flags(cola: Run, words: str, expected: str) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment = os.environ | asked | {"_COLA_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'cola'\n" + ENTRY]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [expected], result.stderr


def _in_a_terminal(arguments: list[str], folder: Path, **variables: str) -> str:
    """What `cola` writes when stdout and stderr are a terminal."""
    controller, terminal = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")} | variables
    process = subprocess.Popen(
        cola_command(*arguments), stdout=terminal, stderr=terminal, env=environment, cwd=folder
    )
    os.close(terminal)
    written = _all_of(controller)
    assert process.wait() == 0, written
    return written


def _all_of(controller: int) -> str:
    """What a terminal received until all have closed it."""
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while piece := os.read(controller, 65536):
            written += piece
    os.close(controller)
    return written.decode()


ESCAPE, COLOUR = "\x1b", re.compile(r"\x1b\[([0-9;]*)m")


def test_colours_and_cursor_movements_are_for_terminals_that_want_them(tmp_path: Path) -> None:
    from tests.artifacts.test_promises import make

    make(tmp_path / "tokens")
    for arguments in (["inspect", "tokens"], ["verify", "tokens"], ["verify", "--help"]):
        plain = _in_a_terminal(arguments, tmp_path, TERM="dumb", NO_COLOR="1")
        assert ESCAPE not in plain
        assert "\r" not in plain.replace("\r\n", "\n")
    assert COLOUR.search(_in_a_terminal(["verify", "--help"], tmp_path, TERM="xterm-256color"))
    for arguments in (["inspect", "tokens"], ["verify", "--help"]):
        written = _in_a_terminal(arguments, tmp_path, TERM="xterm-256color", NO_COLOR="1")
        codes = {int(code or 0) for found in COLOUR.findall(written) for code in found.split(";")}
        assert max(codes, default=0) < 10, "only bold, dim and the like"


def test_a_table_that_is_too_wide_for_the_terminal_has_a_line_for_each_value(
    tmp_path: Path,
) -> None:
    from tests.artifacts.test_promises import make

    make(tmp_path / "tokens")
    names = [f"column_{number}" for number in range(25)]
    query = f"select {', '.join(f'{n} as {name}' for n, name in enumerate(names))} from range(2)"
    terminal = {"TERM": "dumb", "COLUMNS": "80"}
    shown = _in_a_terminal(["sql", query, "tokens"], tmp_path, **terminal).splitlines()
    assert [line.split() for line in shown[:25]] == [[n, str(i)] for i, n in enumerate(names)]
    assert shown[25] == ""
    assert len(shown) == 51
    listed = _in_a_terminal(["status", "."], tmp_path, **terminal).splitlines()
    assert sum("tokens" in line and "complete" in line for line in listed) == 1
    assert listed[-1] == "run next: cola train vae tokens -o VAE"
    assert max(map(len, listed)) <= 80


@pytest.mark.parametrize("width", [45, 80, 200])
def test_a_progress_bar_leaves_out_what_the_terminal_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    from cola_cli.cli.console import TerminalReporter

    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, width))
    with open(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm-256color")
        reporter = TerminalReporter()
        reporter.start("train", 120, "steps")
        reporter.advance(
            5, **{"loss": "8.9360", "tokens/s": 1180.0, "use": "5%", "memory": "0.4GB"}
        )
        reporter.stop()
    last = _all_of(controller).replace("\n", "\r").rstrip("\r").split("\r")[-1].rstrip()
    assert len(last) <= width
    assert "4%" in last
    if width == 45:
        assert "loss" not in last
    else:
        assert last.endswith("]"), "it is cut"
    if width == 200:
        assert "loss=8.9360, tokens/s=1.18k, use=5%, memory=0.4GB]" in last


def test_quiet_leaves_stderr_empty_and_stdout_to_the_result(cola: Run, tmp_path: Path) -> None:
    from tests.artifacts.test_promises import make

    make(tmp_path / "tokens")
    assert cola("verify", "tokens").stderr
    quiet = cola("verify", "tokens", "--quiet")
    assert (quiet.stdout.count("\n"), quiet.stderr) == (1, "")


def test_with_json_an_error_is_json_and_quiet_has_a_variable(cola: Run, tmp_path: Path) -> None:
    from tests.artifacts.test_promises import make

    result = cola("inspect", "missing", "--json", expect=4)
    told = json.loads(result.stderr)["error"]
    assert "missing" in told["problem"]
    assert told["exit_code"] == 4
    assert told["remedy"]
    make(tmp_path / "tokens")
    assert cola("verify", "tokens", env=os.environ | {"COLA_QUIET": "1"}).stderr == ""
    assert cola("verify", "tokens", env=os.environ | {"TQDM_DISABLE": "1"}).stderr == ""


def test_a_fault_before_a_command_begins_has_a_traceback_too(
    cola: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cola_cli.cli.main.app", lambda: {}["missing"])
    assert "Traceback" not in cola("status", expect=1).stderr
    assert "Traceback" in cola("status", "--debug", expect=1).stderr


def test_foreign_text_is_neither_markup_nor_control_of_the_terminal(tmp_path: Path) -> None:
    from tests.artifacts.test_promises import make

    make(tmp_path / "tokens")
    query = r"""select '[/red]' || chr(27) || ']0;owned' || chr(7) as "[/a]", E'one\ntwo\tthree'"""
    shown = _in_a_terminal(["sql", query, "tokens"], tmp_path, TERM="dumb", COLUMNS="200")
    assert r"[/red]\x1b]0;owned\x07" in shown
    assert r"one\ntwo\tthree" in shown
    piped = subprocess.run(
        cola_command("sql", query, "tokens"), cwd=tmp_path, capture_output=True, text=True
    )
    assert piped.stdout.splitlines()[1].split("\t") == [
        r"[/red]\x1b]0;owned\x07",
        r"one\ntwo\tthree",
    ]


def test_a_full_disk_under_the_output_is_said(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            cola_command("schema", "manifest"), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 1
    assert result.stderr.startswith("cola: error: the disk is full.")


def test_a_wrong_flag_is_a_usage_error(cola: Run) -> None:
    assert cola("verify", "--no-such-flag", expect=2).stderr


def test_verify_names_the_file_of_a_flipped_byte(cola: Run, tmp_path: Path) -> None:
    from tests.artifacts.test_promises import make

    make(tmp_path / "tokens")
    assert "complete, 7 files" in cola("verify", "tokens").stdout
    part = tmp_path / "tokens/parts/00001.bin"
    part.write_bytes(b"x" + part.read_bytes()[1:])
    result = cola("verify", "tokens", expect=5)
    assert "tokens/parts/00001.bin is damaged" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_sql_reads_manifests_as_tables(cola: Run, tmp_path: Path) -> None:
    from tests.artifacts.test_promises import make

    make(tmp_path / "tokens")
    query = "select count(*) as n from tokens.files"
    assert cola("sql", query, "tokens").stdout.split() == ["n", "7"]
    assert cola("sql", "select oops", "tokens", expect=2).stderr.startswith("cola: error: ")


def test_every_table_of_settings_has_a_schema() -> None:
    assert set(settings._models()) == {"manifest", "part", *TABLES}


@pytest.mark.parametrize("name", sorted(settings._models()))
def test_schemas_are_json_schemas_of_closed_objects(cola: Run, name: str) -> None:
    shown = json.loads(cola("schema", name).stdout)
    assert shown["type"] == "object"
    assert shown["additionalProperties"] is False


def test_an_unknown_schema_suggests_the_nearest(cola: Run) -> None:
    assert "Did you mean manifest?" in cola("schema", "manifst", expect=2).stderr


def test_a_directory_that_is_no_artifact_is_bad_input(cola: Run, tmp_path: Path) -> None:
    result = cola("inspect", tmp_path, expect=4)
    assert "is neither an artifact nor a released checkpoint" in result.stderr


def test_a_released_checkpoint_can_be_inspected(cola: Run) -> None:
    made = Path(__file__).parents[1] / "format1/run"
    shown = json.loads(cola("inspect", made / "released", "--json").stdout)
    for network in ("vae", "prior"):
        config = json.loads((made / "prior" / network / "config.json").read_text())
        assert shown["settings"][network] == config
    assert "settings.prior.latent_dim" in cola("inspect", made / "released").stdout


def test_a_python_without_file_locks_is_told_what_to_use() -> None:
    without = "import sys; sys.modules['fcntl'] = None; sys.argv[0] = 'cola'\n" + ENTRY
    for words in (["status", "."], ["sample", "demo", "-p", "x"]):
        command = [sys.executable, "-c", without, *words]
        told = subprocess.run(command, capture_output=True, text=True)
        assert told.returncode == 2, told.stderr
        assert "cola runs on Linux and macOS" in told.stderr
        assert "WSL" in told.stderr
        assert "Traceback" not in told.stderr


def test_a_long_name_in_a_foreign_file_makes_no_long_message() -> None:
    name = "\x00" + "x" * 1_000_000
    problem = InputError(f"a/file.json: there is no {name!r}.", "Correct it.").problem
    assert problem.startswith("a/file.json: there is no")
    assert problem.endswith("x'.")
    assert len(problem) < 1100
    # but a conflict names every setting
    assert len(OutputConflict(problem * 9).problem) > 9000
