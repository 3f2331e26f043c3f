"""Shared by all tests: the real `cola` in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread: tests run beside one another, and the kill tests compare bytes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

Run = Callable[..., subprocess.CompletedProcess[str]]


def cola_command(*arguments: object) -> list[str]:
    """The command line of `cola` in this interpreter."""
    code = "from cola_cli.cli.main import main; main()"
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.fixture
def cola(tmp_path: Path) -> Run:
    """Run the real command; `expect` is its exit code (None: any)."""

    def run(
        *arguments: object, expect: int | None = 0, cwd: Path = tmp_path, **options: object
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            cola_command(*arguments), capture_output=True, text=True, cwd=cwd, **options
        )
        if expect is not None:
            assert result.returncode == expect, f"{arguments}\n{result.stdout}\n{result.stderr}"
        return result

    return run
