"""cola doctor: each finding is tried on this machine, and says what to do where something is missing."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
from pathlib import Path

import pytest

from cola_cli.stages import doctor
from tests.conftest import Run


def finding(name: str, directory: Path) -> doctor.Check:
    return next(one for one in doctor.examine(directory) if one.name.startswith(name))


def test_a_machine_that_runs_the_tests_has_no_problems(cola: Run, tmp_path: Path) -> None:
    found = json.loads(cola("doctor", "--json").stdout)
    assert found["problems"] == 0
    values = {one["name"]: one["value"] for one in found["findings"]}
    assert f"torch {importlib.metadata.version('torch')}" in values["packages"]
    assert "flock work" in values["disk of ."]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_locks_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # as some network file systems have it
    assert "does not lock" in finding("disk", tmp_path).value


def test_a_directory_that_is_missing_is_a_problem(cola: Run) -> None:
    printed = cola("doctor", "missing").stdout
    assert "!!  disk of missing" in printed


def test_without_a_compiler_the_way_out_is_told_and_nothing_is_wrong(cola: Run) -> None:
    environment = os.environ | {"CXX": "no-such-compiler"}
    found = json.loads(cola("doctor", "--json", env=environment).stdout)
    attention = next(one for one in found["findings"] if one["name"] == "C++ attention")
    assert "Install a C++ compiler" in attention["remedy"]
    assert found["problems"] == 0


def test_an_extra_that_is_not_installed_has_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = ["torch>=2", "no-such-package>=1; extra == 'judge'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    found = finding("extra judge", tmp_path)
    assert (found.value, found.needed) == ("without no-such-package", False)
    assert "cola-cli[judge]" in found.remedy
