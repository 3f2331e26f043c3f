"""pipelines/torchrun.sh in miniature, as two real processes on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cola_cli.artifacts import Artifact
from tests.stages.conftest import made_up_text

PIPELINES = Path(__file__).parents[2] / "pipelines"
SETTINGS = """
[tokenize]
vocab_size = 300
seq_len = 32
validation_fraction = 0.2
documents = "blank-line"
[vae.model]
dim = 32
ffn_dim = 64
heads = 2
encoder_layers = 1
decoder_layers = 1
[vae.train]
steps = 3
batch_size = 4
[prior.model]
dim = 32
heads = 2
head_dim = 16
rope_dim = 12
layers = 1
[prior.train]
steps = 3
batch_size = 4
"""


@pytest.mark.slow
def test_two_processes_make_all_artifacts_and_then_find_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(made_up_text(300))
    (tmp_path / "mini.toml").write_text(SETTINGS)
    environment = os.environ | {
        "PROCESSES": "2",
        "PRESET": "tiny",
        "PYTHON": sys.executable,
        "SETTINGS": str(tmp_path / "mini.toml"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["bash", str(PIPELINES / "torchrun.sh"), str(tmp_path / "run")]
    command.append(str(tmp_path / "corpus.txt"))
    first = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert first.returncode == 0, first.stderr
    for kind in ("tokens", "vae", "latents", "prior"):
        Artifact.open(tmp_path / "run" / kind, kind)  # type: ignore[arg-type]
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("up to date") == 4
