"""A random sample of the faults, what the list of write points must hold, and that the harness can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import drawn_seed
from tests.faults import filling, seccomp, strace
from tests.faults.stages import FOLDER, GOES_ON_FROM, KIND

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 5  # faults a stage
HISTORIES = 3
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLA_THREADS": "1"}
STRACED = ("tokenize", "encode")


def hold_calls() -> str:
    """Why system calls cannot be held here; empty when they can."""
    tried = subprocess.run(
        [sys.executable, "-c", "from tests.faults import seccomp; seccomp.install()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else ""


pytestmark = pytest.mark.skipif(bool(reason := hold_calls()), reason=reason or "possible")


def campaign(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the harness in a process of its own."""
    command = [sys.executable, "-m", "tests.faults", *map(str, arguments), "--jobs", "1"]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The outcome of a sample, and what was printed (the seed first)."""
    path = tmp_path_factory.mktemp("faults") / "outcome.json"
    seed = drawn_seed()
    done = campaign("--sample", SAMPLE, "--seed", seed, "--strace", *STRACED, "--json", path)
    assert path.is_file(), done.stdout + done.stderr
    return json.loads(path.read_text()), done.stdout


@pytest.mark.slow
def test_nothing_is_lost_in_a_random_sample_of_the_faults(
    drawn: tuple[dict[str, Any], str],
) -> None:
    outcome, printed = drawn
    print(printed)
    assert len(outcome["results"]) == len(FOLDER) * SAMPLE
    assert not outcome["lost"], printed
    assert not outcome["unclear"], printed


@pytest.mark.slow
def test_every_file_is_synced_renamed_and_its_folder_synced(
    drawn: tuple[dict[str, Any], str],
) -> None:
    outcome, _ = drawn
    assert set(outcome["points"]) == set(FOLDER.values())
    for folder, points in outcome["points"].items():
        if KIND[folder] in GOES_ON_FROM:  # made beside what lies there, and moved
            continue
        names = [point.rpartition(" #")[0] for point in points]
        assert f"flock {folder}/.lock" in names
        assert names.index(f"flock {folder}/.lock") < names.index(
            f"open {folder}/manifest.json.tmp"
        )
        files = [f"{folder}/{name}" for name in outcome["files"][folder]]
        assert f"{folder}/manifest.json" in files
        for file in files:
            renamed = len(names) - 1 - names[::-1].index(f"rename {file}")
            synced = len(names) - 1 - names[::-1].index(f"fsync {file}.tmp")
            written = [n for n, name in enumerate(names) if name == f"write {file}.tmp"]
            assert max(written, default=0) < synced < renamed, file
            assert f"fsync {Path(file).parent}" in names[renamed:], file
        last = [name for name in names if not name.endswith(".lock")][-2:]
        assert last == [f"rename {folder}/manifest.json", f"fsync {folder}"]


@pytest.mark.slow
@pytest.mark.skipif(bool(strace.why_not()), reason=strace.why_not() or "possible")
def test_strace_counts_the_same_calls(drawn: tuple[dict[str, Any], str]) -> None:
    outcome, _ = drawn
    assert outcome["strace"] == {"agreed": [*STRACED], "otherwise": []}


@pytest.mark.slow
@pytest.mark.skipif(bool(filling.why_not()), reason=filling.why_not() or "possible")
def test_real_full_disks_are_among_the_faults(drawn: tuple[dict[str, Any], str]) -> None:
    outcome, _ = drawn
    assert "full disks" not in outcome["skipped"]


SABOTAGE = {
    "power cuts": "import os; os.fsync = lambda descriptor: None",
    "killed within": (
        "import os; from pathlib import Path\n"
        "def replace(one, two): Path(two).write_bytes(Path(one).read_bytes()); os.unlink(one)\n"
        "os.replace = replace"
    ),
    "two writers": "import fcntl; fcntl.flock = lambda *_: None",
}


@pytest.mark.slow
def test_the_harness_finds_each_promise_that_is_broken() -> None:
    """No fsync; files changed in place; no lock."""
    code = "import json, sys; from tests.faults.sabotage import main; main(json.loads(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(SABOTAGE)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lost = json.loads(done.stdout)
    assert lost.keys() == SABOTAGE.keys()
    assert all(lost.values()), lost


@pytest.mark.slow
def test_any_history_ends_in_the_same_artifact() -> None:
    """Of runs, kills, shards, verifications and repairs; real processes, histories drawn by hypothesis."""
    command = [sys.executable, "-m", "tests.faults.histories", "--examples", str(HISTORIES)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_whatever_befalls_one_of_two_processes_costs_nothing() -> None:
    """At a write point, by chance, of each stage that two can share; the module tries all."""
    command = [sys.executable, "-m", "tests.faults.ranks", "--sample", "1"]
    command += ["--seed", str(drawn_seed())]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults: 0 lost" in done.stdout


def test_a_machine_that_cannot_hold_calls_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(seccomp.Unavailable, match="Darwin"):
        seccomp.install()
