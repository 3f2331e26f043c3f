"""Loss terms and gradients against brute force, float64, to 1e-9; who gets a gradient from what."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.models.config import LEVELS
from cola_cli.training import randomness
from cola_cli.training.objectives.flow_matching import noisy_window
from cola_cli.training.objectives.objective import Batch
from tests.oracles import plain_train
from tests.training import brute_force as brute
from tests.training.conftest import (
    LENGTH,
    PRIOR,
    VAE,
    batch_of,
    chats,
    gradients,
    prior_objective,
    rows,
    vae_objective,
)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9, msg=name)


def brute_vae_terms(vae: torch.nn.Module, batch: Batch, clean_kl: bool) -> dict[str, Tensor]:
    """Terms of the VAE's losses, sequence by sequence."""
    w, data = weights_of(vae), rows()
    lengths = data.lengths.tolist()
    sums: dict[str, Any] = dict.fromkeys(
        ("reconstruction", "kl", "mask", "negative_entropy", "reference", "drift"), 0.0
    )
    masked_count = 0
    for i, length in enumerate(lengths):
        tokens, places = batch["tokens"][i], list(range(length))
        mean, logvar = brute.encode(tokens, w, VAE)
        z = mean + (logvar / 2).exp() * batch["noise"][i]
        sums["reconstruction"] += brute.cross_entropy(brute.decode(z, w, VAE), tokens, places)
        zero = torch.zeros(length, VAE.latent_dim)
        sums["kl"] += brute.kl(mean[:length], logvar[:length], zero, zero)
        sums["negative_entropy"] += brute.negative_entropy(logvar[:length])
        if not clean_kl:
            reference = batch["mean"][i, :length], batch["logvar"][i, :length]
            sums["reference"] += brute.kl(mean[:length], logvar[:length], *reference)
        masked_tokens = batch["masked_tokens"][i]
        masked = [j for j in range(LENGTH) if masked_tokens[j] == VAE.vocab_size]
        masked_count += len(masked)
        mean, logvar = brute.encode(masked_tokens, w, VAE)
        z = mean + (logvar / 2).exp() * batch["masked_noise"][i]
        if masked:
            sums["mask"] += brute.cross_entropy(brute.decode(z, w, VAE), tokens, masked)
    counts = {name: masked_count if name == "mask" else sum(lengths) for name in sums}
    return {name: value / counts[name] for name, value in sums.items()}


def brute_flow(objective: Any, batch: Batch, z0: Tensor) -> Tensor:
    return plain_train.loss(
        weights_of(objective.prior),
        PRIOR,
        z0,
        batch["z1"],
        batch["t"],
        batch["clean"],
        batch["flow_weight"],
    )


def test_stage_one_equals_brute_force() -> None:
    objective = vae_objective(mask={"fraction": 0.4})
    batch = batch_of(objective, rows())
    terms = objective(batch)
    theirs = brute_vae_terms(objective.vae, batch, clean_kl=True)
    loss = theirs["reconstruction"] + 1e-3 * theirs["kl"] + 0.1 * theirs["mask"]
    assert_close(terms, {n: theirs[n] for n in ("reconstruction", "kl", "mask")} | {"loss": loss})
    assert_close(gradients(objective, terms["loss"]), gradients(objective, loss))


def test_a_fixed_posterior_has_the_set_log_snr_and_learns_no_variance() -> None:
    objective = vae_objective(loss={"posterior": "fixed", "log_snr": 1.5})
    terms = objective(batch_of(objective, rows()), evaluate=True)
    assert objective.metrics(terms)["log_snr"] == pytest.approx(1.5, abs=1e-5)
    gradient = gradients(objective, terms["loss"])["vae.posterior_out.weight"]
    assert gradient[VAE.latent_dim :].abs().max() == 0
    assert gradient[: VAE.latent_dim].abs().max() > 0


def test_frozen_flow_matching_equals_brute_force() -> None:
    objective = prior_objective(data={"partly_clean": 0.6})
    batch = batch_of(objective, rows())
    assert 0 < batch["clean"].sum() < batch["clean"].numel()
    z0 = batch["mean"] + (batch["logvar"] / 2).exp() * batch["noise"]
    ours, theirs = objective(batch)["loss"], brute_flow(objective, batch, z0)
    assert_close({"loss": ours}, {"loss": theirs})
    assert_close(gradients(objective, ours), gradients(objective, theirs))


CASES: dict[str, dict[str, Any]] = {
    "head": {"model": {"prediction": "tokens"}, "loss": {"next_token": 0.7}},
    "head, causal history": {
        "model": {"prediction": "tokens", "causal_history": True}, "loss": {"next_token": 0.7},
    },
    "head, residual": {
        "model": {"prediction": "tokens", "residual": True}, "loss": {"flow": 0.6, "decoder": 0.3},
    },
    "head, evidence": {
        "model": {"prediction": "tokens", "causal_history": True, "evidence": True},
        "loss": {"next_token": 0.7, "decoder": 0.3},
    },
    "head, read": {"model": {"prediction": "tokens"}, "loss": {"decoder": 0.3}},
    "velocity, read": {"loss": {"decoder": 0.3}},
    "latent, noisy history": {"model": {"prediction": "latent"}, "data": {"history_noise": 0.5}},
}  # fmt: skip


@pytest.mark.parametrize("data", [rows(), chats()], ids=["text", "chats"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_predicted_and_foretold_and_read_equals_brute_force(case: str, data: Rows) -> None:
    chosen: dict[str, Any] = {"model": {}, "loss": {}} | CASES[case]
    chosen["data"] = {"partly_clean": 0.6} | chosen.get("data", {})
    objective = prior_objective(**chosen)
    batch = batch_of(objective, data)
    theirs = brute_predictions(objective, batch, data)
    kinds = {"velocity": "flow", "latent": "flow", "tokens": "cross_entropy"}
    theirs["loss"] = theirs[kinds[objective.prior.config.prediction]]
    for name, weight in chosen["loss"].items():
        theirs["loss"] = theirs["loss"] + weight * theirs[name]
    ours = objective(batch)
    assert ours.keys() == theirs.keys()
    assert_close(ours, theirs)
    assert_close(gradients(objective, ours["loss"]), gradients(objective, theirs["loss"]))


def brute_predictions(objective: Any, batch: Batch, data: Rows) -> dict[str, Tensor]:
    """Every term of the loss that a prior has, sequence by sequence and place by place."""
    prior = objective.prior
    config, codes, w = prior.config, getattr(prior, "codes", None), weights_of(prior)
    z0 = batch["mean"] + (batch["logvar"] / 2).exp() * batch["noise"]
    block, clean = config.block_size, LENGTH - config.block_size
    mask = plain_train.flattened_mask(1, LENGTH, block)
    if config.causal_history:
        mask[:clean, :clean] = torch.ones(clean, clean, dtype=torch.bool).tril()
    t = batch["t"].repeat_interleave(block, 1).masked_fill(batch["clean"], 0)[..., None]
    places = torch.cat((torch.arange(clean), torch.arange(LENGTH)))
    found: dict[str, list[Tensor]] = {}
    for i, length in enumerate(data.lengths.tolist()):
        z_t, history = (1 - t[i]) * z0[i] + t[i] * batch["z1"][i], z0[i, :clean]
        if "history_time" in batch:
            time = batch["history_time"][i]
            assert 0 < time.item() < 0.5
            history = (1 - time) * history + time * batch["history_noise"][i, :clean]
        times = torch.cat((torch.zeros(clean), t[i, :, 0]))
        latents = torch.cat((history, z_t))
        read_as = before = None
        if config.evidence:  # clean latents as the tokens of the nearest codes
            far = (latents[:, None] - codes).square().sum(-1)
            read_as = torch.where(times == 0, far.argmin(-1), -1)
            # the last one of the clean copy, or the one before in the block
            at = torch.arange(LENGTH) - 1
            before = torch.where(at % block == block - 1, at, clean + at)
            before = torch.cat((torch.full((clean,), -2), before))
        out = plain_train.forward(w, config, latents, times, places, mask, True, read_as, before)
        logits, tokens = out[:, : config.vocab_size], torch.tensor(data.tokens[i])
        if config.evidence:
            variance = (1 - t[i]) ** 2 * prior.code_variance + t[i].clamp(min=1 / 64) ** 2
            spread = torch.distributions.Normal(
                (1 - t[i])[:, None] * codes, variance.sqrt()[:, None]
            )
            evidence = spread.log_prob(z_t[:, None]).sum(-1)  # (N, vocabulary)
            logits = torch.cat((logits[:clean], logits[clean:] + evidence))
        said = logits.log_softmax(-1)
        own = out[clean:]
        if codes is not None:
            estimate = said[clean:].exp() @ codes
            estimate = estimate + own[:, config.vocab_size :] if config.residual else estimate
        else:
            estimate = own if config.prediction == "latent" else z_t - t[i] * own
        velocity = (z_t - estimate) / t[i].clamp(min=1 / 64)
        errors = (velocity - (batch["z1"][i] - z0[i])).square().mean(-1)
        read = None
        if objective.settings.loss.decoder:
            vae = objective._decoder[0]
            read = brute.decode(estimate, weights_of(vae), VAE)
        for j in range(length):
            if not batch["clean"][i, j] and batch["flow_weight"][i, j]:
                if codes is not None:
                    found.setdefault("cross_entropy", []).append(-said[clean + j, tokens[j]])
                if codes is None or config.residual:
                    found.setdefault("flow", []).append(errors[j])
                if read is not None:
                    found.setdefault("decoder", []).append(-read[j, tokens[j]])
            before = j - (1 if config.causal_history else block)
            asked = data.response is None or data.response[i, j]
            if objective.settings.loss.next_token and 0 <= before < clean and asked:
                found.setdefault("next_token", []).append(-said[before, tokens[j]])
    return {name: torch.stack(terms).mean() for name, terms in found.items()}


def test_one_answer_of_a_block_is_learnt_and_what_is_before_it_is_known() -> None:
    objective, data = prior_objective(data={"partly_clean": 0.0, "noisy_copies": 2}), chats()
    block, seen = objective.prior.config.block_size, set()
    assert data.response is not None
    for step in range(20):
        batch = batch_of(objective, data, step)
        learnt, clean = batch["flow_weight"] > 0, batch["clean"]
        for row, begin in itertools.product(range(6), range(0, LENGTH, block)):
            places = range(begin, begin + block)
            real = [data.response[row // 2, j] and j < data.lengths[row // 2] for j in places]
            own = [j for j in places if learnt[row, j]]
            assert bool(own) == any(real)
            first = own[0] if own else begin + block
            assert [bool(clean[row, j]) for j in places] == [j < first for j in places]
            # the whole answer: from its first position to the last in the block
            stop = next((j for j in places if j > first and not real[j - begin]), begin + block)
            assert own == list(range(first, stop))
            assert first in (begin, begin + block) or not real[first - 1 - begin]
            seen.add((row // 2, first))
    assert {(0, 4), (0, 7), (2, 4), (2, 7)} <= seen  # both answers of a block have their turns


def test_nothing_is_learnt_of_a_conversation_without_an_answer() -> None:
    silent = dataclasses.replace(chats(), response=np.zeros((3, LENGTH), bool))
    for head in ("velocity", "tokens"):
        objective = prior_objective(model={"prediction": head}, loss={"next_token": 0.7})
        terms = objective(batch_of(objective, silent))
        found = gradients(objective, terms["loss"])
        assert max(float(gradient.abs().max()) for gradient in found.values()) == 0


def test_the_vae_learns_all_of_a_conversation() -> None:
    objective = vae_objective()
    for data in (rows(), chats()):
        weights = batch_of(objective, data)["token_weight"] > 0
        assert weights.sum(1).tolist() == data.lengths.tolist()


def test_noisy_copies_are_sequences_with_their_own_noise_and_times() -> None:
    objective = prior_objective(data={"partly_clean": 0.6, "noisy_copies": 3})
    batch = batch_of(objective, rows())
    z0 = batch["mean"] + (batch["logvar"] / 2).exp() * batch["noise"]
    assert len(batch["z1"]) == len(batch["t"]) == len(batch["clean"]) == 3 * len(z0)
    assert len(batch["t"].unique()) == batch["t"].numel()
    ours = objective(batch)
    theirs = brute_flow(objective, batch, z0.repeat_interleave(3, 0))
    assert_close({"loss": ours["loss"]}, {"loss": theirs})
    assert_close(gradients(objective, ours["loss"]), gradients(objective, theirs))


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("update", [0, 1, 2])
def test_a_noisy_copy_that_holds_some_blocks_learns_these_as_a_whole_one_does(
    update: int, copies: int
) -> None:
    data = {"partly_clean": 0.6, "noisy_copies": copies, "noisy_share": 0.4}
    objective = prior_objective(data=data)
    batch = batch_of(objective, rows(), update)
    window, size = batch["window"], PRIOR.block_size
    assert len(window) == size * -(-2 * (LENGTH // size) // 5) < LENGTH
    z0 = batch["mean"] + (batch["logvar"] / 2).exp() * batch["noise"]
    z0 = z0.repeat_interleave(copies, 0)
    whole = batch | {
        "z1": torch.zeros_like(z0),
        "t": torch.ones(len(z0), LENGTH // size),
        "clean": torch.zeros(z0.shape[:2], dtype=torch.bool),
        "flow_weight": torch.zeros(z0.shape[:2]),
    }
    for name in ("z1", "clean", "flow_weight"):
        whole[name][:, window] = batch[name]
    whole["t"][:, window[::size] // size] = batch["t"]
    del whole["window"]
    ours, theirs = objective(batch), brute_flow(objective, whole, z0)
    assert_close({"loss": ours["loss"]}, {"loss": theirs})
    assert_close(gradients(objective, ours["loss"]), gradients(objective, theirs))


@pytest.mark.parametrize(("share", "updates"), [(1.0, 1), (0.5, 2), (0.25, 4), (0.01, 12)])
def test_noisy_windows_hold_every_block_equally_often(share: float, updates: int) -> None:
    held = [n for step in range(3, 3 + updates) for n in noisy_window(24, 2, share, step)]
    assert sorted(held) == list(range(24))


def test_noisy_windows_that_do_not_divide_the_blocks_hold_all_of_them() -> None:
    windows = [noisy_window(10, 2, 0.4, step) for step in range(4)]
    assert windows == [range(0, 4), range(4, 8), range(6, 10), range(0, 4)]


@torch.no_grad()
@pytest.mark.parametrize("pieces", [False, True])
def test_evidence_of_some_blocks_is_that_of_all(pieces: bool) -> None:
    model = {"prediction": "tokens", "evidence": True, "causal_history": True, "stagger": 1.0}
    prior = prior_objective(model=model).prior
    size, channels = prior.config.block_size, prior.config.latent_dim
    z0, z = torch.randn(2, 2, LENGTH, channels, generator=torch.Generator().manual_seed(6)).double()
    of = torch.arange(LENGTH).ge(LENGTH // 2 + 1).long().repeat(2, 1) if pieces else None
    times = torch.arange(LEVELS + 1).double() / LEVELS
    levels = (7 * torch.arange(2 * LENGTH) % (LEVELS + 1)).view(2, LENGTH)
    said, history = prior.clean_copy(z0, size, pieces=of)

    def hidden(window: Tensor | None) -> Tensor:
        view = prior.noisy_copies(history, z0, size, 1, of, said, window)
        part = slice(None) if window is None else window
        return prior.hidden(z[:, part], prior.level_modulation(times, levels[:, part]), view)

    everything = hidden(None)
    for window in (range(0, 2 * size), range(size, LENGTH - size), range(LENGTH - size, LENGTH)):
        expected = everything[:, window.start : window.stop]
        torch.testing.assert_close(hidden(torch.tensor(window)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block_size", [1, 2, 6])
def test_block_sizes_other_than_the_models_mix_in_a_batch(block_size: int) -> None:
    objective = prior_objective(data={"block_sizes": [block_size], "partly_clean": 0.5})
    batch = batch_of(objective, rows())
    assert batch["t"].shape == (3, LENGTH // block_size)
    config = objective.prior.config
    z0 = batch["mean"] + (batch["logvar"] / 2).exp() * batch["noise"]
    changed = type(config)(**(vars(config) | {"block_size": block_size}))
    theirs = plain_train.loss(
        weights_of(objective.prior),
        changed,
        z0,
        batch["z1"],
        batch["t"],
        batch["clean"],
        batch["flow_weight"],
    )
    assert_close({"loss": objective(batch)["loss"]}, {"loss": theirs})


def test_a_curriculum_begins_with_its_own_block_sizes() -> None:
    """At most for a third of the run: 3 of the 4 updates that blocks of 2 would have."""
    changes = {"data": {"block_curriculum": [(1, 2), (2, 4)]}, "train": {"steps": 15}}
    objective = prior_objective(**changes)
    own = objective.prior.config.block_size
    sizes = [batch_of(objective, rows(), step)["block_size"] for step in range(7)]
    assert sizes == [1, 1, 2, 2, 2, own, own]
    validation = objective.draw(rows(), randomness.generators(5, 0, 0, range(3)), 0, True)
    assert [drawn["block_size"] for drawn in validation] == [own]


@pytest.mark.parametrize("flow_gradient", ["detach", "latent"])
def test_joint_training_equals_brute_force(flow_gradient: str) -> None:
    objective: Any = prior_objective(
        mode="joint",
        loss={"flow_gradient": flow_gradient, "vae": 0.7, "flow": 1.3, "reference": 0.2},
        mask={"fraction": 0.4},
    )
    batch = batch_of(objective, rows())
    terms = objective(batch)
    theirs = brute_vae_terms(objective.vae, batch, clean_kl=False)
    w, z0 = weights_of(objective.vae), []
    for i in range(len(batch["tokens"])):
        mean, logvar = brute.encode(batch["tokens"][i], w, VAE)
        z0.append(mean + (logvar / 2).exp() * batch["noise"][i])
    flow = brute_flow_through_z_t(objective, batch, torch.stack(z0), flow_gradient == "latent")
    vae = theirs["reconstruction"] + 1e-3 * theirs["negative_entropy"] + 0.1 * theirs["mask"]
    loss = 0.7 * vae + 1.3 * flow + 0.2 * theirs["reference"]
    names = ("reconstruction", "negative_entropy", "mask", "reference")
    assert_close(terms, {n: theirs[n] for n in names} | {"flow": flow, "loss": loss})
    assert_close(gradients(objective, terms["loss"]), gradients(objective, loss))


def brute_flow_through_z_t(objective: Any, batch: Batch, z0: Tensor, latent: bool) -> Tensor:
    """The flow loss with the gradient reaching z_0 through z_t alone, or not at all."""
    fixed = z0.detach()
    if not latent:
        return brute_flow(objective, batch, fixed)
    # z_t = (1 - t) z_0 + t z_1 is linear, so the gradient through z_t alone is that of a shift of z_t
    t = (
        batch["t"]
        .repeat_interleave(PRIOR.block_size, 1)
        .masked_fill(batch["clean"], 0.0)[..., None]
    )
    shift = (1 - t) * (z0 - fixed)
    return plain_train.loss(
        weights_of(objective.prior),
        PRIOR,
        fixed,
        batch["z1"],
        batch["t"],
        batch["clean"],
        batch["flow_weight"],
        shift=shift,
    )


def test_the_flow_loss_reaches_the_encoder_only_when_asked_and_never_the_decoder() -> None:
    for flow_gradient, reaches in (("detach", False), ("latent", True)):
        objective = prior_objective(mode="joint", loss={"flow_gradient": flow_gradient})
        found = gradients(objective, objective(batch_of(objective, rows()))["flow"])
        touched = {name for name, gradient in found.items() if gradient.abs().max() > 0}
        assert any(name.startswith("prior.") for name in touched)
        assert any(name.startswith("vae.encoder") for name in touched) == reaches
        assert not any(name.startswith(("vae.decoder", "vae.token_out")) for name in touched)


def test_reference_and_entropy_move_the_encoder_alone() -> None:
    objective = prior_objective(mode="joint")
    terms = objective(batch_of(objective, rows()))
    for name in ("reference", "negative_entropy"):
        touched = {n for n, g in gradients(objective, terms[name]).items() if g.abs().max() > 0}
        assert touched
        assert not any(n.startswith(("prior.", "vae.decoder", "vae.token_out")) for n in touched)


def test_the_vae_rests_outside_the_moving_part_of_a_cycle() -> None:
    objective = prior_objective(mode="joint", joint={"cycle": 5, "moving": 2})
    for step in range(10):
        loss = objective(batch_of(objective, rows(), step))["loss"]
        found = gradients(objective, loss)
        moved = any(g.abs().max() > 0 for n, g in found.items() if n.startswith("vae."))
        assert moved == (step % 5 < 2)


def test_padding_changes_neither_loss_nor_gradients() -> None:
    objective: Any = prior_objective(mode="joint")
    data = rows()
    other = rows()
    other.tokens[-1, -3:] = (other.tokens[-1, -3:] + 1) % VAE.vocab_size
    first, second = batch_of(objective, data), batch_of(objective, other)
    for name in ("reconstruction", "reference", "negative_entropy", "mask"):
        assert_close({name: objective(first)[name]}, {name: objective(second)[name]})
