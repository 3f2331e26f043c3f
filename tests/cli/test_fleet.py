"""`--on ray`: the same bytes, whatever is killed; a user's errors, not an engine's."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cola_cli.artifacts.verify import verify
from tests.conftest import Run, cola_command, content, drawn_seed
from tests.ports import free_port
from tests.stages.conftest import made_up_text

needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
COMMAND = ("tokenize", "corpus", "--vocab-size", "300", "--set", "part_bytes=10000")
ON_RAY = ("--on", "ray", "--shards", "4", "--json", "--quiet")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files of text, from which some 70 parts are made."""
    (tmp_path / "corpus").mkdir()
    for number in range(2):
        (tmp_path / f"corpus/{number}.txt").write_text(made_up_text(6000, number))
    return tmp_path


def start(folder: Path, *arguments: str, address: str = "") -> subprocess.Popen[str]:
    """A `cola` on the Ray at an address, or on one of its own."""
    pipe, variables = subprocess.PIPE, os.environ | {"RAY_ADDRESS": address}
    return subprocess.Popen(
        cola_command(*arguments), cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True
    )


def workers(driver: int) -> list[int]:
    """The processes that a Ray of this driver runs shards in."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue  # it has just ended
    found = {driver}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return [one for one in found if names.get(one, "").startswith("ray::make_shard")]


def parts(folder: Path) -> dict[Path, int]:
    """The records of the chunks in `out`, of two parts each, with the times at which they were written."""
    found = {path: path.stat().st_mtime_ns for path in folder.glob("out/parts/*.json")}
    pairs = {path: path.with_name(f"{int(path.stem) ^ 1:05d}.json") for path in found}
    return {path: written for path, written in found.items() if pairs[path] in found}


def wait_for_parts(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Return once so many parts are there."""
    while len(parts(folder)) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@needs_ray
@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_part_alone(corpus: Path, cola: Run) -> None:
    cola(*COMMAND, "-o", "whole")
    driver = start(corpus, *COMMAND, "-o", "out", *ON_RAY)
    source = random.Random(seed := drawn_seed())
    made = len(list(corpus.glob("whole/parts/*.json")))
    wait_for_parts(driver, corpus, source.randrange(2, made // 2))
    before, victim = parts(corpus), source.choice(sorted(workers(driver.pid)))
    os.kill(victim, signal.SIGKILL)
    out, errors = driver.communicate()
    assert (driver.returncode, errors) == (0, ""), seed
    assert json.loads(out)["status"] == "complete"
    assert before.items() <= parts(corpus).items()
    assert content(corpus / "out") == content(corpus / "whole")
    assert not verify(corpus / "out").findings


@needs_ray
@pytest.mark.slow
def test_an_error_of_a_shard_is_that_of_the_command(corpus: Path) -> None:
    (corpus / "corpus/wrong.jsonl").write_text('{"text": "right"}\n{"text"\n')
    driver = start(corpus, *COMMAND, "-o", "out", *ON_RAY)
    out, errors = driver.communicate()
    assert (driver.returncode, out) == (4, "")
    (line,) = errors.splitlines()
    told = json.loads(line)["error"]
    assert told["problem"].startswith("shard ")
    assert "wrong.jsonl, line 2" in told["problem"]


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told_in_a_minute(corpus: Path) -> None:
    addresses = [f"{kind}127.0.0.1:{free_port()}" for kind in ("", "ray://")]
    drivers = [start(corpus, *COMMAND, "-o", "out", *ON_RAY, address=one) for one in addresses]
    for address, driver in zip(addresses, drivers, strict=True):
        _, errors = driver.communicate(timeout=120)
        told = json.loads(errors.splitlines()[-1])["error"]
        assert driver.returncode == 4
        assert told["problem"].startswith(f"Ray cannot be used at {address} (")
    assert not (corpus / "out").exists()


@needs_ray
@pytest.mark.slow
def test_a_signal_stops_the_shards_and_the_command_goes_on_later(corpus: Path, cola: Run) -> None:
    driver = start(corpus, *COMMAND, "-o", "out", *ON_RAY[:-2])
    wait_for_parts(driver, corpus, 4)
    running = workers(driver.pid)
    driver.send_signal(signal.SIGTERM)
    out, errors = driver.communicate()
    assert (driver.returncode, out) == (143, "")
    assert "interrupted; progress is saved" in errors
    assert running
    end = time.monotonic() + 30
    while any(Path(f"/proc/{one}").exists() for one in running):
        assert time.monotonic() < end, "a worker lives on"
        time.sleep(0.1)
    assert not list((corpus / "out/parts").glob("*.tmp*"))
    before = parts(corpus)
    cola(*COMMAND, "-o", "out")
    cola(*COMMAND, "-o", "whole")
    assert before.items() <= parts(corpus).items()
    assert content(corpus / "out") == content(corpus / "whole")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*COMMAND, "-o", "out", "--on", "slurm"), "it is not ray, nor ray://HOST:PORT"),
        ((*COMMAND, "-o", "out", "--on", "ray://"), "it is not ray, nor ray://HOST:PORT"),
        ((*COMMAND, "-o", "out", "--shards", "4"), "--shards is for --on"),
        ((*COMMAND, "-o", "out", "--on", "ray", "--shard", "0/2"), "Drop --shard"),
        ((*COMMAND, "-o", "out", "--on", "ray", "--overwrite"), "cannot be combined with shards"),
        ((*COMMAND, "-o", "out", "--on", "ray", "--add"), "done by one process"),
        (("sample", "demo", "--prompt", "Tom", "--on", "ray"), "--on are for artifacts"),
        (("sample", "demo", "-o", "out", "--on", "ray"), "cannot pass on standard input"),
        ((*COMMAND, "-o", "out", "--on", "ray"), "pip install 'cola-cli[ray]'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_started(
    corpus: Path, cola: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # type: ignore[arg-type]
    piped = {"input": "Tom"} if words[0] == "sample" and "--prompt" not in words else {}
    assert told in cola(*words, expect=2, **piped).stderr
    assert not (corpus / "out").exists()
