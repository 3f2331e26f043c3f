"""pipelines/finetune.sh in miniature: a small prior goes on with other text, then for more steps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.verify import verify
from tests.pipelines.conftest import cola_script, small_prior
from tests.pipelines.test_torchrun import PIPELINES
from tests.stages.conftest import made_up_text


@pytest.mark.slow
def test_a_prior_goes_on_with_other_text_and_then_for_more_steps(tmp_path: Path) -> None:
    model, run = small_prior(tmp_path), tmp_path / "run"
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
