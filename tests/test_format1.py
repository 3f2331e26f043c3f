"""Artifacts made by the first version of the format stay up to date, whole, readable, and can be continued.

`format1/run` was made by `format1/make.sh` with the version that the manifests name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Run

HERE = Path(__file__).parent / "format1"
SETTINGS = ("--config", HERE / "settings.toml")
COMMANDS = {
    "tokens": ("tokenize", "corpus.txt", *SETTINGS),
    "vae": ("train", "vae", "tokens", *SETTINGS),
    "latents": ("encode", "tokens", "--vae", "vae"),
    "prior": ("train", "prior", "latents", *SETTINGS),
    "joint": ("train", "prior", "latents", "--mode", "joint", *SETTINGS),
    "ar": ("train", "ar", "tokens", *SETTINGS),
    "llada": ("train", "llada", "tokens", *SETTINGS),
    "samples": ("sample", "prior", "--prompts", "prompts.jsonl", "-n", "8", "--steps", "2",
                "--seed", "5", "--temperature", "1"),
    "answers": ("eval", "run", "prior", "--task", "lambada", "--data", "lambada.jsonl",
                "--set", "max_new_tokens=4", "--set", "steps=2"),
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(HERE / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_finished_stage_of_format_1_is_up_to_date(run: Path, cola: Run, stage: str) -> None:
    before = {path: path.read_bytes() for path in (run / stage).rglob("*") if path.is_file()}
    result = cola(*COMMANDS[stage], "-o", stage, "--json", cwd=run)
    assert json.loads(result.stdout).get("changed", False) is False
    after = {path: path.read_bytes() for path in (run / stage).rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if path.name != ".lock"} == before


def test_every_artifact_of_format_1_is_verified_and_inspected(run: Path, cola: Run) -> None:
    cola("verify", *COMMANDS, cwd=run)
    for stage in COMMANDS:
        cola("inspect", stage, "--json", cwd=run)


@pytest.mark.parametrize("model", ["prior", "joint", "ar", "released"])
def test_a_model_of_format_1_is_sampled(run: Path, cola: Run, model: str) -> None:
    cola("sample", model, "--prompt", "Anna sees", "-n", "4", cwd=run)


def test_a_training_interrupted_by_format_1_ends_where_a_quiet_run_does(
    run: Path, cola: Run
) -> None:
    """Not in its bytes: its first half was computed on another machine, whose sums may end in other digits,
    and before batches were cut into shares."""
    command = ("train", "vae", "tokens", *SETTINGS, "--set", "train.steps=120", "--threads", "1")
    resumed = cola(*command, "-o", "interrupted", cwd=run)
    assert "goes on" in resumed.stderr or "step" in resumed.stderr
    cola(*command, "-o", "quiet", cwd=run)
    ours, quiet = (
        load_file(run / name / "vae/model.safetensors") for name in ("interrupted", "quiet")
    )
    assert ours.keys() == quiet.keys()
    for name, value in quiet.items():
        torch.testing.assert_close(ours[name], value, atol=1e-4, rtol=0, msg=name)
