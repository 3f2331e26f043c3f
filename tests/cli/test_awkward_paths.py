"""A path is a path: every command works in directories whose names other programs read as something else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.files import sha256_file
from cola_cli.cli.main import app
from tests.conftest import cola_command
from tests.test_format1 import HERE

NAMES = (
    "run:7", "lr[12]", "a*", "a?", "~", "~root", "file:x", "s3:y", "-x", "100%", "%2e", "with space",
    'it\'s "quoted"', "new\nline", os.fsdecode(b"caf\xe9"), "lr=3", "back\\slash", "{a,b}", "$HOME",
    "main", "temp", "Memory", "information_schema", "**", "select", ";--", "é",
)  # fmt: skip
EVERYTHING = (
    '~/run:7 lr[12] a* ? 100% it\'s "é"\n\\{a,b}$HOME',
    "file:x/lr=3/-x",
)


def cola(*words: object) -> str:
    if any(
        "\udcff" in str(word) or "\udce9" in str(word) for word in words
    ):  # as on a real terminal
        command = cola_command(*words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, (words, result.stdout, result.stderr, result.exception)
    return result.stdout


def written(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


@pytest.mark.parametrize("name", NAMES)
def test_what_reads_artifacts_reads_those_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = written(name)
    shutil.copytree(HERE / "run/prior", path)
    rows = json.loads(cola("sql", "--json", "select count(*), max(step) from metrics", path))
    # what the name would match if it were a pattern, or name if it were expanded
    for other in ("lr1", "ab", "aa", "home", "b"):
        shutil.copytree(HERE / "run/vae", other)
    wanted = json.loads(cola("sql", "--json", "select count(*), max(step) from metrics", path))
    assert wanted == rows
    tokens = f"{path}-tokens" if name.strip("-") else path
    shutil.copytree(HERE / "run/tokens", tokens)
    for other in ("lr1-tokens", "ab-tokens", "aa-tokens"):
        shutil.copytree(HERE / "run/latents", other)
    described = json.loads(cola("inspect", tokens, "--json"))
    assert [row["column"] for row in described["schema"]] == ["tokens", "length", "segments"]
    shutil.copytree(HERE / "run/samples", "samples")
    shutil.copytree(HERE / "run/tokens", "plain")
    shares = [
        json.loads(cola("eval", "text", "samples", "--tokens", name, "--ngram", "1", "--json"))
        for name in ("plain", tokens)
    ]
    assert shares[0] == shares[1]
    cola("verify", path, tokens)
    cola("status", path)
    cola("report", path, "-o", f"{path}.html")
    assert not (tmp_path / "home/parts").exists()


def test_two_artifacts_of_one_name_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("Run", "x/run"):
        shutil.copytree(HERE / "run/vae", name)
    result = CliRunner().invoke(app, ["sql", "select 1", "Run", "x/run"])
    assert result.exit_code == 2
    assert "two of the artifacts are called run" in result.stderr


@pytest.mark.parametrize("folder", ["plain", *EVERYTHING])
def test_every_stage_writes_where_it_is_told(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    home.mkdir()
    work.mkdir()
    (home / "run:7/parts").mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COLA_THREADS", "1")
    place = Path(folder)
    place.mkdir(parents=True)
    given = {}
    for name in ("corpus.txt", "prompts.jsonl", "lambada.jsonl"):
        given[name] = place / name
        shutil.copy(HERE / "run" / name, place / name)
    settings = ("--config", place / "settings.toml", "--set", "train.steps=2")
    shutil.copy(HERE / "settings.toml", place)
    cola("tokenize", given["corpus.txt"], f"--output={place}/tokens", *settings[:2])
    cola("train", "vae", place / "tokens", "-o", place / "vae", *settings)
    cola("encode", place / "tokens", "--vae", place / "vae", "-o", place / "latents")
    cola("train", "prior", place / "latents", "-o", place / "prior", *settings)
    cola(
        "train",
        "ar",
        place / "tokens",
        "--match",
        place / "prior",
        "-o",
        place / "ar",
        "--set",
        "train.steps=2",
    )
    cola("sample", place / "prior", "--prompts", given["prompts.jsonl"], "-n", "4", "--steps", "2",
         "-o", place / "samples")  # fmt: skip
    cola("eval", "run", place / "prior", "--task", "lambada", "--data", given["lambada.jsonl"],
         "-o", place / "answers", "--set", "max_new_tokens=4", "--set", "steps=2")  # fmt: skip
    cola("eval", "text", place / "samples", "--tokens", place / "tokens", "--judge", place / "ar")
    cola("eval", "table", place / "answers")
    cola(
        "diagnose", "vae", place / "vae", "--tokens", place / "tokens", "--plot", place / "plot.svg"
    )
    cola("export", place / "prior", "-o", place / "export")
    cola("import", place / "export", "-o", place / "import")
    cola("likelihood", place / "import", "--text", "Anna sees", "--draws", "1", "--steps", "2")
    cola("report", place, "-o", place / "report.html")
    for kind in ("tokens", "vae", "latents", "prior", "ar", "samples", "answers", "import"):
        Artifact.open(place / kind)
    assert not [file for file in home.rglob("*") if file.is_file()]
    assert sorted(file.name for file in work.iterdir()) == [place.parts[0]]


MODELS = """
import json, os, sys
from cola_cli.cli.main import app, prepare_streams
prepare_streams()
for command in json.loads(sys.argv[1]):
    assert not app([*command, "--threads", "1"], standalone_mode=False), command
"""


def test_models_are_read_and_written_in_directories_whose_names_are_not_utf_8(
    tmp_path: Path,
) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(HERE / "run", place)
    few = ("--config", HERE / "settings.toml", "--set", "train.steps=2")
    prompt = ("--prompt", "Anna sees", "-n", "4", "--steps", "2")
    commands = [
        ("encode", place / "tokens", "--vae", place / "vae", "-o", place / "encoded"),
        ("train", "prior", place / "encoded", "-o", place / "trained", *few),
        ("train", "vae", place / "tokens", "-o", place / "interrupted", *few[:2],
         "--set", "train.steps=120"),
        ("sample", place / "trained", *prompt),
        ("sample", place / "ar", *prompt[:4]),
        ("sample", place / "released", *prompt),
    ]  # fmt: skip
    words = json.dumps([[str(word) for word in command] for command in commands])
    result = subprocess.run([sys.executable, "-c", MODELS, words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in ("encoded", "trained", "interrupted"):
        Artifact.open(place / name)
    assert "going on from step" in result.stderr


def test_an_import_of_the_folder_one_stands_in_finds_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(HERE / "run/released", tmp_path / "released")
    monkeypatch.chdir(tmp_path / "released/cola_dlm")
    cola("import", ".", "-o", tmp_path / "a")
    monkeypatch.chdir(tmp_path / "released/cola_dlm/cola_vae")
    cola("import", "..", "-o", tmp_path / "b")
    for name in ("a", "b"):
        assert sha256_file(tmp_path / name / "tokenizer.json") == sha256_file(
            tmp_path / "released/tokenizer.json"
        )
    (tmp_path / "released/tokenizer.json").unlink()
    result = CliRunner().invoke(
        app, ["import", str(tmp_path / "released"), "-o", str(tmp_path / "c")]
    )
    assert result.exit_code == 0
    assert "no tokenizer.json" in result.stderr
