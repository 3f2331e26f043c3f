"""cola train vae: killed and resumed, refused, and what it writes."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cola_cli.artifacts import Artifact
from cola_cli.errors import ColaError, InputError, Interrupted, OutputConflict, UsageError
from cola_cli.families import TEXT_VAE
from cola_cli.machine import interruption
from cola_cli.stages.train import train
from cola_cli.training.loop import Training
from tests.conftest import CPU, Run, cola_command, content
from tests.stages.conftest import (
    SEQ_LEN,
    assignments,
    files_beside_the_kept_state,
    vae_settings,
)
from tests.stages.killing import assert_same_manifest, assert_same_metrics, kill_until_done


@pytest.mark.slow
def test_killed_again_and_again_the_vae_is_the_same_to_the_byte(made: Path, tmp_path: Path) -> None:
    settings = vae_settings(steps=150, checkpoint_every=7, validate_every=50)
    train(TEXT_VAE, made / "tokens", tmp_path / "quiet", settings, CPU)
    command = ["train", "vae", str(made / "tokens"), "-o", str(tmp_path / "killed")]
    command += [*assignments(settings), "--device", "cpu"]
    kill_until_done(command, "matrix products", kills=5, span=0.8, seed=1)
    assert content(tmp_path / "killed") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "killed", tmp_path / "quiet")
    assert_same_manifest(tmp_path / "killed", tmp_path / "quiet")


def test_the_artifact_holds_weights_config_tokenizer_and_metrics(made: Path) -> None:
    vae = Artifact.open(made / "vae", "vae")
    assert files_beside_the_kept_state(vae) == {
        "vae/config.json",
        "vae/model.safetensors",
        "tokenizer.json",
        "metrics.parquet",
    }
    config = json.loads(vae.file("vae/config.json").read_bytes())
    assert config["vocab_size"] == 300
    statistics = vae.manifest.statistics
    assert statistics["steps"] == 24
    assert 0 <= statistics["validation_accuracy"] <= 1
    assert statistics["parameters"] > 0
    table = pq.read_table(made / "vae" / "metrics.parquet")
    assert {"loss", "reconstruction", "kl", "mask", "learning_rate", "gradient_norm"} <= set(
        table.column_names
    )
    assert table.column("step").to_pylist() == [5, 8, 10, 15, 16, 20, 24]


def test_a_second_run_says_up_to_date_without_importing_torch(made: Path) -> None:
    command = ["train", "vae", str(made / "tokens"), "-o", str(made / "vae")]
    command += assignments(vae_settings())
    code = (
        "import sys; from cola_cli.cli.main import app\n"
        f"app({command!r}, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([*cola_command()[:2], code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "up to date" in run.stdout


def test_another_setting_is_a_conflict_that_names_it(made: Path) -> None:
    with pytest.raises(OutputConflict, match=r"train\.seed: 66 -> 67"):
        train(TEXT_VAE, made / "tokens", made / "vae", vae_settings(seed=67), CPU)


def test_what_does_not_change_the_result_is_no_conflict(made: Path) -> None:
    settings = vae_settings(checkpoint_every=9, keep_last=1)
    assert not train(TEXT_VAE, made / "tokens", made / "vae", settings, CPU).changed


def test_a_vae_where_tokens_belong_is_an_error(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an artifact of kind vae, but one of kind tokens"):
        train(TEXT_VAE, made / "vae", tmp_path / "out", vae_settings(), CPU)


def test_sizes_that_do_not_fit_are_named(made: Path, tmp_path: Path) -> None:
    settings = vae_settings()
    wrong = settings.model_copy(update={"model": settings.model.model_copy(update={"heads": 3})})
    with pytest.raises(UsageError, match="heads"):
        train(TEXT_VAE, made / "tokens", tmp_path / "out", wrong, CPU)
    wrong = settings.model_copy(
        update={"model": settings.model.model_copy(update={"patch_size": 5})}
    )
    with pytest.raises(UsageError, match="multiple"):
        train(TEXT_VAE, made / "tokens", tmp_path / "out", wrong, CPU)


@pytest.mark.parametrize("phase", ["step", "validation"])
def test_a_signal_saves_and_the_next_run_goes_on_exactly(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
) -> None:
    settings = vae_settings(ema_decay=0.9)
    train(TEXT_VAE, made / "tokens", tmp_path / "quiet", settings, CPU)
    name = "_update" if phase == "step" else "_validate"
    undisturbed = getattr(Training, name)
    calls = []

    def disturbed(self: Training, *arguments: object) -> None:
        calls.append(0)
        if len(calls) == 2:
            monkeypatch.setattr(interruption, "_received", signal.SIGTERM)
        undisturbed(self, *arguments)

    monkeypatch.setattr(Training, name, disturbed)
    with pytest.raises(Interrupted) as stop:
        train(TEXT_VAE, made / "tokens", tmp_path / "stopped", settings, CPU)
    assert stop.value.exit_code == 143
    monkeypatch.undo()
    train(TEXT_VAE, made / "tokens", tmp_path / "stopped", settings, CPU)
    assert content(tmp_path / "stopped") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "stopped", tmp_path / "quiet")


def test_a_bad_step_stops_and_names_the_rows_or_is_skipped(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Training._clip
    calls: list[int] = []

    def broken(self: Training) -> float:
        calls.append(0)
        return float("nan") if len(calls) == 3 else clip(self)

    monkeypatch.setattr(Training, "_clip", broken)
    with pytest.raises(ColaError, match=r"step 3: .* on training sequences \d+(, \d+){3}\."):
        train(TEXT_VAE, made / "tokens", tmp_path / "stop", vae_settings(), CPU)
    calls.clear()
    settings = vae_settings(on_bad_step="skip")
    outcome = train(TEXT_VAE, made / "tokens", tmp_path / "skip", settings, CPU)
    assert outcome.statistics["skipped"] == 1


def test_recomputing_activations_does_not_change_the_mathematics(
    made: Path, tmp_path: Path
) -> None:
    plain = train(TEXT_VAE, made / "tokens", tmp_path / "a", vae_settings(), CPU)
    settings = vae_settings(activation_checkpointing=True)
    other = train(TEXT_VAE, made / "tokens", tmp_path / "b", settings, CPU)
    assert other.statistics["loss"] == pytest.approx(plain.statistics["loss"], rel=1e-5)


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    made: Path, tmp_path: Path, cola: Run
) -> None:
    run = cola(
        "train", "vae", made / "tokens", "-o", tmp_path / "out", "--dry-run", "--json",
        *assignments(vae_settings()),
    )  # fmt: skip
    plan = json.loads(run.stdout)["plan"]
    statistics = Artifact.open(made / "vae").manifest.statistics
    assert plan["parameters"] == statistics["parameters"]
    assert plan["steps"] == 24
    assert plan["tokens"] == 24 * 4 * SEQ_LEN
    assert not (tmp_path / "out").exists()
