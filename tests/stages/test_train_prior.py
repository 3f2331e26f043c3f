"""cola train prior, frozen and joint: killed and resumed, refused, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cola_cli.api import load
from cola_cli.artifacts import Artifact
from cola_cli.errors import InputError, UsageError
from cola_cli.families import PRIOR, TEXT_VAE
from cola_cli.settings.encode import EncodeSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.train import plan_training, require_maker, train
from cola_cli.training.objectives.flow_matching import FlowMatching
from cola_cli.training.objectives.objective import Batch
from cola_cli.weights.artifact import load_prior, load_vae
from tests import golden
from tests.conftest import CPU, Run, content
from tests.stages.conftest import (
    SEQ_LEN,
    assignments,
    files_beside_the_kept_state,
    prior_settings,
    vae_settings,
)
from tests.stages.killing import assert_same_manifest, assert_same_metrics, kill_until_done


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_killed_again_and_again_the_prior_is_the_same_to_the_byte(
    made: Path, tmp_path: Path, mode: str
) -> None:
    settings = prior_settings(mode, steps=100, checkpoint_every=7, validate_every=50)
    train(PRIOR, made / "latents", tmp_path / "quiet", settings, CPU)
    command = ["train", "prior", str(made / "latents"), "-o", str(tmp_path / "killed")]
    command += ["--mode", mode, "--device", "cpu", *assignments(settings)]
    kill_until_done(command, "matrix products", kills=5, span=0.8, seed=3)
    assert content(tmp_path / "killed") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "killed", tmp_path / "quiet")
    assert_same_manifest(tmp_path / "killed", tmp_path / "quiet")


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_the_artifact_is_self_contained(made: Path, tmp_path: Path, mode: str) -> None:
    outcome = train(PRIOR, made / "latents", tmp_path / "out", prior_settings(mode), CPU)
    prior = Artifact.open(tmp_path / "out", "prior")
    assert files_beside_the_kept_state(prior) == {
        "prior/config.json",
        "prior/model.safetensors",
        "vae/config.json",
        "vae/model.safetensors",
        "tokenizer.json",
        "metrics.parquet",
    }
    parameters = sum(p.numel() for p in load_prior(prior).parameters())
    if mode == "joint":
        parameters += sum(p.numel() for p in load_vae(prior).parameters())
    assert outcome.statistics["parameters"] == parameters
    before = load_file(made / "vae" / "vae" / "model.safetensors")
    after = load_file(tmp_path / "out" / "vae" / "model.safetensors")
    moved = any(not before[name].equal(after[name]) for name in before)
    assert moved == (mode == "joint")


def test_the_flow_loss_is_reported_beside_predictions_without_a_model(
    made: Path, tmp_path: Path
) -> None:
    settings = prior_settings(steps=100, validate_every=100)
    outcome = train(PRIOR, made / "latents", tmp_path / "out", settings, CPU)
    found = outcome.statistics
    # E (z1 - z0)^2 = 1 + E mu^2 + E sigma^2, and E mu^2 = 1 as the means are normalised
    known = Artifact.open(made / "latents").manifest.statistics["posterior_variance"]
    expected = 2 + sum(known) / len(known)
    assert found["validation_flow_of_zero"] == pytest.approx(expected, rel=0.05)
    assert found["validation_flow_of_mean"] <= found["validation_flow_of_zero"]
    assert found["validation_flow_of_linear"] < found["validation_flow_of_mean"]
    assert found["validation_flow"] < 0.9 * found["validation_flow_of_mean"]


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_bf16_autocast_with_recomputation_trains_about_as_float32_does(
    made: Path, tmp_path: Path, mode: str
) -> None:
    exact = train(PRIOR, made / "latents", tmp_path / "a", prior_settings(mode), CPU)
    settings = prior_settings(mode, precision="bf16", activation_checkpointing=True)
    rough = train(PRIOR, made / "latents", tmp_path / "b", settings, CPU)
    for name in ("validation_flow", "validation_loss"):
        assert rough.statistics[name] == pytest.approx(exact.statistics[name], rel=0.02)


def test_a_vae_that_did_not_make_the_latents_is_an_error(made: Path, tmp_path: Path) -> None:
    train(TEXT_VAE, made / "tokens", tmp_path / "vae", vae_settings(seed=1, steps=2), CPU)
    latents = Artifact.open(made / "latents")
    require_maker(latents, made / "vae")
    with pytest.raises(InputError, match="encoded by another VAE"):
        require_maker(latents, tmp_path / "vae")


def test_tokens_where_latents_belong_are_an_error(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an artifact of kind tokens, but one of kind latents"):
        train(PRIOR, made / "tokens", tmp_path / "out", prior_settings(), CPU)


def test_a_block_size_that_does_not_divide_the_sequence_is_an_error(
    made: Path, tmp_path: Path
) -> None:
    settings = prior_settings()
    model = settings.model.model_copy(update={"block_size": 5})
    wrong = settings.model_copy(update={"model": model})
    with pytest.raises(UsageError, match="not a multiple of block size 5"):
        train(PRIOR, made / "latents", tmp_path / "out", wrong, CPU)


def flow_without_stops(
    self: FlowMatching, z0: Tensor, noised: Tensor, batch: Batch, evaluate: bool = False
) -> dict[str, Tensor]:
    """The flow loss with every stop-gradient removed: history, target and z_t all reach the encoder."""
    t = (
        batch["t"]
        .repeat_interleave(batch["block_size"], 1)
        .masked_fill(batch["clean"], 0)[..., None]
    )
    z_t = (1 - t) * z0 + t * batch["z1"]
    velocity = golden.clean_and_noisy_velocity(self.prior, z0, z_t, t[..., 0], batch["block_size"])
    errors = (velocity - (batch["z1"] - z0)).square().mean(-1)
    return {"flow": (errors * batch["flow_weight"]).sum()}


@pytest.mark.slow
def test_latents_drift_without_the_reference_and_give_in_to_the_flow_loss_without_the_stop_gradient(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = vae_settings(steps=300, validate_every=300)
    train(TEXT_VAE, made / "tokens", tmp_path / "vae", settings, CPU)
    latents = tmp_path / "latents"
    encode(made / "tokens", tmp_path / "vae", latents, EncodeSettings(), CPU)
    found = {}
    for name, reference, stopped in (
        ("held", 0.001, True),
        ("no reference", 0.0, True),
        ("no stop", 0.001, False),
    ):
        joint = prior_settings("joint", steps=200, validate_every=200)
        loss = joint.loss.model_copy(update={"reference": reference})
        chosen = joint.model_copy(update={"loss": loss})
        with monkeypatch.context() as patch:
            if not stopped:
                patch.setattr(FlowMatching, "prediction", flow_without_stops)
            found[name] = train(PRIOR, latents, tmp_path / name, chosen, CPU).statistics
    drift = {name: values["validation_drift"] for name, values in found.items()}
    flow = {name: values["validation_flow"] for name, values in found.items()}
    assert drift["held"] < 0.2 * drift["no reference"]
    # latents that the prior foresees: the flow loss falls because they say less, not because it learnt
    assert drift["held"] < 0.05 * drift["no stop"]
    assert flow["no stop"] < 0.5 * flow["held"]


def test_a_plan_counts_the_vae_in_joint_mode(made: Path) -> None:
    frozen = plan_training(PRIOR, made / "latents", prior_settings())
    joint = plan_training(PRIOR, made / "latents", prior_settings("joint"))
    vae = Artifact.open(made / "vae").manifest.statistics["parameters"]
    assert joint["parameters"] == frozen["parameters"] + vae
    assert joint["flops_per_step"] > frozen["flops_per_step"]


@pytest.mark.slow
@pytest.mark.xdist_group("memory")
def test_the_planned_memory_is_within_15_percent_of_what_then_happens(
    made: Path, tmp_path: Path, cola: Run
) -> None:
    model = {"dim": 256, "heads": 4, "head_dim": 64, "rope_dim": 48, "layers": 6, "block_size": 8}
    flags = ["--set", "train.steps=2", "--set", "train.batch_size=128", "--json", "--quiet"]
    flags += ["--set", "train.validation_sequences=2", "--device", "cpu"]
    for name, value in model.items():
        flags += ["--set", f"model.{name}={value}"]
    command = ["train", "prior", made / "latents", "-o", tmp_path / "out", *flags]
    plan = json.loads(cola(*command, "--dry-run").stdout)["plan"]
    cola(*command)
    table = pq.read_table(tmp_path / "out" / "metrics.parquet")
    happened = max(value for value in table.column("memory_bytes").to_pylist() if value)
    assert plan["memory_bytes"] == pytest.approx(happened, rel=0.15)


def test_what_has_no_place_for_a_residual_says_so(cola: Run, made: Path) -> None:
    flags = assignments(prior_settings(steps=2))
    flags += ["--set", "model.prediction=tokens", "--set", "model.residual=true"]
    cola("train", "prior", made / "latents", "-o", "prior", *flags)
    cola("sample", "prior", "--prompt", "Anna sees", "--max-new-tokens", 4)
    assert "residual = True" in cola("export", "prior", "-o", "out", expect=4).stderr
    refused = cola("distill", "prior", made / "latents", "-o", "student", expect=2).stderr
    assert "cannot be distilled" in refused
    assert "knows no residual" in cola("likelihood", "prior", "--text", "Anna", expect=2).stderr
    wrong = cola(
        "train", "prior", made / "latents", "-o", "other", "--set", "model.residual=true", expect=2
    )
    assert "residual goes with prediction 'tokens'" in wrong.stderr


def test_what_has_no_place_for_evidence_says_so(cola: Run, made: Path) -> None:
    flags = assignments(prior_settings(steps=2))
    flags += ["--set", "model.evidence=true"]
    cola("train", "prior", made / "latents", "-o", "without-tokens", *flags)
    cola("export", "without-tokens", "-o", "released")
    flags += ["--set", "model.prediction=tokens"]
    wrong = cola("train", "prior", made / "latents", "-o", "prior", *flags, expect=2)
    assert "evidence needs causal_history" in wrong.stderr
    flags += ["--set", "model.causal_history=true"]
    few = ["--set", "loss.decoder=0.5", "--set", "data.noisy_share=0.5"]
    wrong = cola("train", "prior", made / "latents", "-o", "prior", *flags, *few, expect=2)
    assert "it needs data.noisy_share = 1" in wrong.stderr
    cola("train", "prior", made / "latents", "-o", "prior", *flags)
    assert "evidence = True" in cola("export", "prior", "-o", "out", expect=4).stderr


def test_the_weights_of_a_prior_become_an_artifact_of_half_the_size(
    cola: Run, made: Path, tmp_path: Path
) -> None:
    changes = ["--set", "model.prediction=tokens", "--set", "sampling.guidance=1"]
    flags = assignments(prior_settings(steps=2))
    cola("train", "prior", made / "latents", "-o", "prior", *flags, *changes)
    rounding = ("import", "prior", "-o", "small", "--dtype", "bfloat16")
    cola(*rounding)
    assert "up to date" in cola(*rounding).stdout
    assert cola("verify", "small").stdout.startswith("small: complete")
    given, small = load(tmp_path / "prior"), load(tmp_path / "small")
    for name, value in given.prior.named_parameters():
        assert torch.equal(small.prior.get_parameter(name), value.bfloat16()), name
    for name, value in given.prior.named_buffers():
        assert torch.equal(small.prior.get_buffer(name), value), name
    assert small.context == given.context == SEQ_LEN
    assert small.defaults == given.defaults == {"guidance": 1.0}
    assert small.tokenizer is not None
    cola("sample", "small", "--prompt", "Anna sees", "--max-new-tokens", 4)
    refused = cola("import", made / "vae", "-o", "other", expect=4).stderr
    assert "artifact of kind vae" in refused
