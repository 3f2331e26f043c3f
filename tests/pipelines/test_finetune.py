"""pipelines/finetune.sh in miniature: a small prior goes on with other text, then for more steps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.verify import verify
from cola_cli.families import PRIOR, TEXT_VAE
from cola_cli.settings.encode import EncodeSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.train import train
from tests.conftest import CPU
from tests.pipelines.conftest import cola_script
from tests.pipelines.test_torchrun import PIPELINES
from tests.stages.conftest import made_up_text, make_tokens, prior_settings, vae_settings


@pytest.mark.slow
def test_a_prior_goes_on_with_other_text_and_then_for_more_steps(tmp_path: Path) -> None:
    vae, latents, model, run = (tmp_path / name for name in ("vae", "latents", "model", "run"))
    tokens = make_tokens(tmp_path)
    train(TEXT_VAE, tokens, vae, vae_settings(steps=2), CPU)
    encode(tokens, vae, latents, EncodeSettings(), CPU)
    train(PRIOR, latents, model, prior_settings(steps=2), CPU)
    (tmp_path / "corpus.txt").write_text(made_up_text(300, seed=7))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Anna sees"}\n')
    command = cola_script(tmp_path)
    environment = os.environ | {
        "COLA": str(command),
        "CORPUS": str(tmp_path / "corpus.txt"),
        "PROMPTS": str(tmp_path / "prompts.jsonl"),
        "SEQ_LEN": "32",
        "PYTHONPATH": str(PIPELINES.parent),
    }
    for steps, up_to_date in ((3, 0), (5, 2)):
        result = subprocess.run(
            ["bash", str(PIPELINES / "finetune.sh"), str(run), str(model)],
            env=environment | {"STEPS": str(steps)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("up to date") == up_to_date
        tuned = Artifact.open(run / "prior").manifest
        assert tuned.statistics["steps"] == steps
        assert tuned.identity.inputs["start"] == Artifact.open(model).manifest.fingerprint
    for kind in ("tokens", "latents", "prior", "samples-3", "samples-5"):
        assert verify(run / kind).findings == []
