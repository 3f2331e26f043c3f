"""Every finished stage, run again, says so at once: nothing is written, and torch is not even imported."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cola_cli.families import PRIOR
from cola_cli.sampling.prompts import given_prompts
from cola_cli.settings.sample import SampleSettings
from cola_cli.stages.sample import sample_to_artifact
from cola_cli.stages.train import train
from tests.conftest import CPU, cola_command
from tests.stages.conftest import SEQ_LEN, assignments, prior_settings, vae_settings


@pytest.fixture(scope="module")
def finished(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five stages."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(made, folder)
    train(PRIOR, folder / "latents", folder / "prior", prior_settings(), CPU)
    settings = SampleSettings(max_new_tokens=8, steps=2)
    prompts = given_prompts(["Anna sees"])
    sample_to_artifact(folder / "prior", prompts, folder / "samples", settings, CPU)
    return folder


TOKENIZE = ["--vocab-size", "300", "--seq-len", str(SEQ_LEN), "--validation-fraction", "0.2"]
COMMANDS = {
    "tokens": ["tokenize", "{}/corpus.txt", *TOKENIZE, "--set", "part_bytes=4000"],
    "vae": ["train", "vae", "{}/tokens", *assignments(vae_settings())],
    "latents": ["encode", "{}/tokens", "--vae", "{}/vae"],
    "prior": ["train", "prior", "{}/latents", *assignments(prior_settings())],
    "samples": ["sample", "{}/prior", "-p", "Anna sees", "-n", "8", "--steps", "2"],
}


def modified(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_finished_stage_run_again_is_up_to_date_without_torch(
    finished: Path, tmp_path: Path, stage: str
) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    before = modified(finished)
    command = [part.format(finished) for part in COMMANDS[stage]]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        cola_command(*command, "-o", finished / stage),
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{finished / stage}: up to date\n"
    assert result.stderr == ""
    assert modified(finished) == before
