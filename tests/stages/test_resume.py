"""Stopped and resumed training of every kind ends with the bytes of undisturbed training."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from cola_cli.errors import Interrupted
from cola_cli.families import DISTILLED, PRIOR, TEXT_VAE
from cola_cli.machine import interruption
from cola_cli.settings.distill import DistillSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.vae import VAESettings
from cola_cli.stages.train import derived_family, train
from cola_cli.training.loop import Training
from tests.conftest import CPU, content
from tests.stages.conftest import distill_settings, prior_settings, vae_settings
from tests.stages.killing import assert_same_metrics

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vae, fixed posterior, shares": (
        "vae",
        {"loss": {"posterior": "fixed"}, "train": {"batch_size": 20}},
    ),
    "vae, muon, average": ("vae", {"optim": {"name": "muon"}, "train": {"ema_decay": 0.9}}),
    "frozen, muon, several block sizes": (
        "frozen",
        {"optim": {"name": "muon"}, "data": {"block_sizes": (4, 8, 16), "partly_clean": 0.5}},
    ),
    "frozen, shares, bf16": (
        "frozen",
        {"train": {"batch_size": 20, "precision": "bf16", "activation_checkpointing": True}},
    ),
    "frozen, token head, staggered, self-conditioned": (
        "frozen",
        {
            "model": {
                "prediction": "tokens",
                "stagger": 2.0,
                "self_conditioning": True,
                "causal_history": True,
            },
            "loss": {"next_token": 0.5},
            "train": {"batch_size": 20, "ema_decay": 0.9},
        },
    ),
    "frozen, clean latent, read by the decoder": (
        "frozen",
        {
            "model": {"prediction": "latent"},
            "loss": {"decoder": 0.5},
            "data": {"history_noise": 0.3},
        },
    ),
    "frozen, token head, residual, evidence": (
        "frozen",
        {
            "model": {
                "prediction": "tokens",
                "residual": True,
                "evidence": True,
                "causal_history": True,
            },
            "loss": {"decoder": 0.5},
        },
    ),
    "joint, slower VAE, average, shares": (
        "joint",
        {"joint": {"vae_lr_ratio": 0.01}, "train": {"ema_decay": 0.95, "batch_size": 20}},
    ),
    "joint, interval, flow gradient": (
        "joint",
        {"joint": {"cycle": 5, "moving": 2}, "loss": {"flow_gradient": "latent"}},
    ),
    "joint, from scratch, mask ramp": (
        "joint",
        {"joint": {"from_scratch": True}, "mask": {"start": 8, "ramp": 8}},
    ),
    "student, token head, staggered, self-conditioned": (
        "student",
        {"train": {"micro_batch": 3, "ema_decay": 0.9}},
    ),
    "student, shares": ("student", {"train": {"batch_size": 20}}),
    "student with a chain, shares": ("chained", {"train": {"batch_size": 20}}),
    "skipping spikes": ("vae", {"train": {"spike_factor": 1e-6, "on_bad_step": "skip"}}),
}


Changed = VAESettings | PriorSettings | DistillSettings


def changed(kind: str, changes: dict[str, Any]) -> Changed:
    """Small settings of a kind with changes laid over them."""
    own: dict[str, Changed] = {
        "vae": vae_settings(),
        "student": distill_settings(steps=24),
        "chained": distill_settings(2, {"steps": 8, "guidance": 1.0}, steps=24),
    }
    settings = own.get(kind) or prior_settings(kind)
    values = settings.model_dump(exclude_unset=True)
    for section, some in changes.items():
        values[section] = values.get(section, {}) | some
    return type(settings).model_validate(values)


def trained(made: Path, output: Path, settings: Changed) -> dict[str, Any]:
    """Run the stage that these settings belong to."""
    if isinstance(settings, DistillSettings):
        teacher = output.parent / "teacher"
        chosen = changed(*KINDS["frozen, token head, staggered, self-conditioned"])
        train(PRIOR, made / "latents", teacher, chosen, CPU)
        family = derived_family(DISTILLED, teacher, made / "latents")
        return train(family, made / "latents", output, settings, CPU).statistics
    if isinstance(settings, VAESettings):
        return train(TEXT_VAE, made / "tokens", output, settings, CPU).statistics
    return train(PRIOR, made / "latents", output, settings, CPU).statistics


@pytest.mark.parametrize("name", KINDS)
def test_stopped_twice_it_ends_the_same_to_the_byte(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = changed(*KINDS[name])
    statistics = trained(made, tmp_path / "quiet", settings)
    if name == "skipping spikes":
        assert statistics["skipped"] > 0
    update = Training._update

    for stop in (6, 22):  # neither is the step of a checkpoint or validation

        def stopping(self: Training, step: Any, stop: int = stop) -> None:
            update(self, step)
            if step.number == stop:
                monkeypatch.setattr(interruption, "_received", signal.SIGTERM)

        monkeypatch.setattr(Training, "_update", stopping)
        with pytest.raises(Interrupted):
            trained(made, tmp_path / "stopped", settings)
        monkeypatch.undo()
        saved = tmp_path / "stopped" / "checkpoints" / f"step-{stop + 1:08d}"
        assert (saved / "COMMITTED.json").exists()
    trained(made, tmp_path / "stopped", settings)
    assert content(tmp_path / "stopped") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "stopped", tmp_path / "quiet")
