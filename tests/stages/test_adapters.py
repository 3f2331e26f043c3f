"""Low-rank adapters: they begin as the base, they alone are trained, and their sum with it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS
from cola_cli.artifacts.kinds import PACKED
from cola_cli.corpus.sequences import Rows
from cola_cli.cost import Data
from cola_cli.cost.training import Place, training_plan
from cola_cli.errors import Interrupted, UsageError
from cola_cli.families import AUTOREGRESSIVE, LLADA, PRIOR, Family
from cola_cli.machine import interruption
from cola_cli.machine.threads import peak_memory
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.rotary import rotary_frequencies
from cola_cli.models.transformer import Transformer
from cola_cli.settings import resolve
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.training import Lora
from cola_cli.stages.start import Start
from cola_cli.stages.train import data_of, train, training_cost
from cola_cli.training import optimizers
from cola_cli.training.adapters import adapt, merged
from cola_cli.training.loop import Training
from cola_cli.training.objectives.flow_matching import FlowMatching
from cola_cli.training.parallelize import recompute_blocks
from cola_cli.training.reader import make_step, scaled, to_device
from tests.conftest import CPU, Run, content
from tests.small_networks import small_networks
from tests.stages.conftest import assignments, prior_settings
from tests.stages.killing import assert_same_metrics, kill_until_done
from tests.stages.test_start import baseline_settings, validated

LORA = {"rank": 3, "alpha": 6.0}
FAMILIES = pytest.mark.parametrize(
    "family", [PRIOR, AUTOREGRESSIVE, LLADA], ids=lambda family: family.command
)


def settings_of(family: Family, lora: dict[str, Any] | None = None, **changes: object) -> Any:
    made = prior_settings(**changes) if family is PRIOR else baseline_settings(**changes)
    return made.model_copy(update={"lora": Lora.model_validate(lora or {})})


@pytest.fixture(scope="module")
def base(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family, to be adapted."""
    folder = tmp_path_factory.mktemp("bases")
    for family in (PRIOR, AUTOREGRESSIVE, LLADA):
        train(family, made / family.reads, folder / family.command, settings_of(family), CPU)
    return folder


def adapted(made: Path, base: Path, family: Family, output: Path, **changes: Any) -> Path:
    settings = settings_of(family, LORA, **changes)
    start = Start(base / family.command, family)
    train(family, made / family.reads, output, settings, CPU, start)
    return output


def weights(artifact: Path, family: Family) -> dict[str, torch.Tensor]:
    return load_file(artifact / family.network / "model.safetensors")


@FAMILIES
def test_the_base_stays_and_the_saved_weights_are_its_sum_with_the_adapters(
    made: Path, base: Path, tmp_path: Path, family: Family, cola: Run
) -> None:
    output = adapted(made, base, family, tmp_path / "adapted")
    before, after = (weights(path, family) for path in (base / family.command, output))
    adapters = load_file(output / family.network / "adapters.safetensors")
    layers = {name.removesuffix(".lora_A.weight") for name in adapters if "lora_A" in name}
    inner = ("mlp_in", "mlp_out") if family is PRIOR else ("ffn_in", "ffn_out")
    assert layers == {f"blocks.{n}.{x}" for n in (0, 1) for x in ("qkv", "attention_out", *inner)}
    assert before.keys() == after.keys()
    for name, weight in before.items():
        layer = name.removesuffix(".weight")
        if layer in layers and name.endswith(".weight"):
            a, b = (adapters[f"{layer}.lora_{part}.weight"] for part in "AB")
            assert len(a) == b.shape[1] == 3
            torch.testing.assert_close(after[name], weight + 2.0 * b @ a)
            assert not torch.equal(after[name], weight)
        else:
            assert torch.equal(after[name], weight), name
    # opened as any model, it is what was validated
    settings = settings_of(family, steps=1)
    again = settings.model_copy(
        update={
            "optim": settings.optim.model_copy(update={"lr": 1e-12, "lr_start": 0.0, "lr_end": 0.0})
        }
    )
    train(family, made / family.reads, tmp_path / "again", again, CPU, Start(output, family))
    last = validated(output, "validation_loss")[-1]
    assert validated(tmp_path / "again", "validation_loss")[0] == pytest.approx(last, rel=1e-5)
    cola("sample", output, "--prompt", "Anna sees", "-n", 8)
    cola("verify", output)
    if family is PRIOR:
        cola("export", output, "-o", "exported")
        cola("sample", "exported", "--prompt", "Anna sees", "-n", 8)


@FAMILIES
def test_checkpoints_hold_adapters_and_their_moments_alone_and_runs_resume_to_the_byte(
    made: Path, base: Path, tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = adapted(made, base, family, tmp_path / "quiet")
    update = Training._update

    def stopping(self: Training, step: Any) -> None:
        update(self, step)
        if step.number == 11:
            monkeypatch.setattr(interruption, "_received", 15)

    monkeypatch.setattr(Training, "_update", stopping)
    with pytest.raises(Interrupted):
        adapted(made, base, family, tmp_path / "stopped")
    monkeypatch.undo()
    (saved,) = (tmp_path / "stopped" / CHECKPOINTS).glob("step-00000012")
    names = load_file(saved / "tensors.safetensors").keys()
    assert all(".parametrizations.weight.0." in name for name in names)
    assert {name.partition(".")[0] for name in names} == {"model", "optimizer"}
    adapted(made, base, family, tmp_path / "stopped")
    assert content(tmp_path / "stopped") == content(quiet)
    assert_same_metrics(tmp_path / "stopped", quiet)


def test_at_first_an_adapted_network_is_its_base_to_the_bit_and_merged_it_is_what_it_was() -> None:
    _, prior = small_networks(2, 11)
    lora, source = Lora(rank=2, alpha=3.0), torch.Generator().manual_seed(0)
    z, t = torch.randn(2, 8, 8, generator=source), torch.tensor([0.3, 0.7])

    def velocity(network: Prior) -> torch.Tensor:
        return network.velocity(z, t, network.teacher_forced(z, network.config.block_size))

    with torch.no_grad():
        before = velocity(prior)
        adapt(prior, lora)
        assert torch.equal(velocity(prior), before)
        for name, parameter in prior.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(generator=source)
        after = velocity(prior)
        assert not torch.allclose(after, before)
        plain = Prior(prior.config)
        plain.load_state_dict(merged(prior.state_dict(), lora)[0])
        torch.testing.assert_close(velocity(plain), after)


@pytest.mark.parametrize("targets", ["attention", "blocks"])
@FAMILIES
def test_adapters_are_as_many_as_counted(made: Path, family: Family, targets: str) -> None:
    settings = settings_of(family, LORA | {"targets": targets})
    cost = training_cost(family, made / family.reads, settings)
    config = family.config(data_of(PACKED[family.reads].open(made / family.reads)), settings)
    network = Prior(config) if family is PRIOR else Transformer(config)
    adapt(network, settings.lora)
    assert cost.adapters == sum(p.numel() for p in network.parameters() if p.requires_grad)
    plan = training_plan(cost, settings.train, settings.optim, Place("cpu", False, 0.0), 32)
    assert plan["state_bytes"] == 4 * (cost.parameters + 4 * cost.adapters)


def paper_sized(**lora: object) -> dict[str, Any]:
    """The plan of fine-tuning the paper's prior on a GPU, a sequence at once."""
    settings = resolve(PriorSettings, "prior", "paper-2b")
    tables = settings.model_dump() | {"mode": "frozen", "lora": lora}
    tables["train"] |= {"batch_size": 8, "micro_batch": 1}
    settings = PriorSettings.model_validate(tables)
    data = Data(512, 100_278, TextVAEConfig(vocab_size=100_278))
    cost = PRIOR.cost(PRIOR.config(data, settings), data, settings)
    return training_plan(cost, settings.train, settings.optim, Place("cuda", True, 0.0), 512)


def test_the_papers_prior_is_fine_tuned_within_24_gb() -> None:
    assert paper_sized()["memory_bytes"] > 29e9
    plan = paper_sized(rank=16)
    assert plan["parameters"] == 1_829_875_728
    assert plan["adapters"] == 24 * 16 * (2048 + 6144 + 2048 + 2048 + 2 * (2048 + 8192))
    assert 7.4e9 < plan["memory_bytes"] < 24e9


def test_adapters_need_a_base_and_a_frozen_vae(made: Path, base: Path, tmp_path: Path) -> None:
    source, output = made / "latents", tmp_path / "adapted"
    with pytest.raises(UsageError, match="need weights to be adapted"):
        train(PRIOR, source, output, settings_of(PRIOR, LORA), CPU)
    joint = settings_of(PRIOR, LORA).model_copy(update={"mode": "joint"})
    with pytest.raises(UsageError, match="a Text VAE has no adapters"):
        train(PRIOR, source, output, joint, CPU, Start(base / "prior", PRIOR))


@pytest.mark.slow
def test_killed_again_and_again_it_is_the_same_to_the_byte(
    made: Path, base: Path, tmp_path: Path
) -> None:
    run = {"steps": 60, "checkpoint_every": 7, "validate_every": 50}
    quiet = adapted(made, base, PRIOR, tmp_path / "quiet", **run)
    command = [
        "train",
        "prior",
        str(made / "latents"),
        "-o",
        str(tmp_path / "killed"),
        "--device",
        "cpu",
    ]
    command += ["--from", str(base / "prior"), *assignments(settings_of(PRIOR, LORA, **run))]
    kill_until_done(command, "matrix products", kills=4, span=0.8, seed=5)
    assert content(tmp_path / "killed") == content(quiet)
    assert_same_metrics(tmp_path / "killed", quiet)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_real_steps_of_the_papers_prior_take_less_than_24_gb() -> None:
    """Random weights, the objective and optimiser of training, bf16 on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length = 512 if device.type == "cuda" else 32  # a CPU would take minutes
    settings = PriorSettings.model_validate({"lora": {"rank": 16}})
    with torch.device("meta"):
        prior = Prior(PriorConfig())
    prior.to_empty(device=device)
    prior.frequencies = rotary_frequencies(96, 10_000.0).to(device)
    for parameter in prior.parameters():
        nn.init.uniform_(parameter, -0.02, 0.02)
    with device:
        adapt(prior, settings.lora)
    vae = TextVAEConfig(vocab_size=300)
    objective = FlowMatching(prior, settings, np.ones(16), length, vae).to(device)
    recompute_blocks(objective)
    (optimizer,) = optimizers.build(objective.parts(), settings.optim)
    source = np.random.default_rng(0)
    latents = source.standard_normal((1, length, 16)).astype(np.float16)
    tokens = np.zeros((1, length), np.int64)
    rows = Rows(np.arange(1), tokens, np.array([length]), latents, latents - 3)
    for number in range(2):
        step = make_step(objective, rows, [0], number, 0, 1)
        batch = to_device(scaled(step.batches[0], step.counts, 1), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.isfinite()
    held = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
    assert 7.3e9 < held < 24e9
