"""Manners of the command line as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from cola_cli.cli.main import app
from tests.conftest import Run


def _commands(command: object, name: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = getattr(command, "commands", None)
    if children is None:
        return [name]
    return [path for child in children for path in _commands(children[child], (*name, child))]


COMMANDS = _commands(typer.main.get_command(app))


def test_help_and_import_are_light() -> None:
    code = (
        "import sys, cola_cli, cola_cli.cli.main\n"
        "heavy = {'torch', 'pyarrow', 'duckdb', 'numpy', 'tokenizers', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(name: tuple[str, ...]) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, [*name, "--help"])
    assert result.exit_code == 0
    assert f"cola {' '.join(name)}" in " ".join(result.stdout.split())
    assert "Example:" in result.stdout


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


@pytest.mark.parametrize(
    "name", ["manifest", "part", "tokenize", "vae", "encode", "prior", "sample"]
)
def test_schemas_are_json_schemas_of_closed_objects(cola: Run, name: str) -> None:
    schema = json.loads(cola("schema", name).stdout)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False


def test_an_unknown_schema_suggests_the_nearest(cola: Run) -> None:
    assert "Did you mean manifest?" in cola("schema", "manifst", expect=2).stderr


def test_a_directory_that_is_no_artifact_is_bad_input(cola: Run, tmp_path: Path) -> None:
    result = cola("inspect", tmp_path, expect=4)
    assert "is not an artifact" in result.stderr
