"""Benchmarks and the pipelines' scripts, which no other test runs, keep up with what they import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCH = [f"tests.bench.{path.stem}" for path in sorted((ROOT / "tests/bench").glob("*.py"))]
PROGRAMS = sorted((ROOT / "pipelines").glob("*.py"))
SCRIPTS = [path for path in PROGRAMS if "__main__" in path.read_text()]


def run(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_benchmark_can_be_imported() -> None:
    # in another process, as they choose its threads
    assert run("-c", f"import {', '.join(BENCH)}") == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_script_says_how_it_is_used(script: Path) -> None:
    assert script.name in run(str(script), "--help")
