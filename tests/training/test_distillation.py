"""Distillation: the teacher's way is the sampler's; a student that learns its target takes the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling.denoise import PlainDenoiser
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.requests import Request
from cola_cli.settings.distill import DistillSettings
from cola_cli.settings.prior import CleanData
from cola_cli.settings.sample import SamplingOptions
from cola_cli.training import randomness
from cola_cli.training.objectives.chained import Chained
from cola_cli.training.objectives.distillation import (
    Blocks,
    Distillation,
    SolverStep,
    begun_blocks,
    merged,
)
from tests.small_networks import BLOCK, small_networks
from tests.training.conftest import chats

VOCABULARY, LENGTH = 40, 12
TEACHERS: dict[str, dict[str, Any]] = {
    "velocity": {},
    "velocity, staggered": {"stagger": 1.5},
    "latent": {"prediction": "latent"},
    "tokens": {"prediction": "tokens", "vocab_size": VOCABULARY},
    "tokens, staggered": {"prediction": "tokens", "vocab_size": VOCABULARY, "stagger": 1.0},
    "tokens, evidence": {
        "prediction": "tokens", "vocab_size": VOCABULARY, "evidence": True, "causal_history": True,
    },
    "tokens, self-conditioned": {
        "prediction": "tokens", "vocab_size": VOCABULARY, "stagger": 3.0, "self_conditioning": True,
    },
}  # fmt: skip


def networks(name: str) -> tuple[TextVAE, Prior]:
    return small_networks(3, VOCABULARY, **TEACHERS[name])


def objective(name: str, passes: int, **teacher: Any) -> tuple[TextVAE, Prior, Distillation]:
    vae, prior = networks(name)
    settings = DistillSettings.model_validate({"passes": passes, "teacher": teacher})
    return vae, prior, Distillation(networks(name)[1], prior, settings, LENGTH, vae.config)


@torch.no_grad()
def way(
    made: Distillation, prior: Prior, z0: Tensor, clean: Tensor, z1: Tensor, stride: int = 1
) -> list[SolverStep]:
    options = made.settings.teacher
    blocks = Blocks(prior, z0, clean, made.values, options.guidance)
    start = torch.where(clean[..., None], z0, z1)
    known = clean[..., None]
    return list(made._steps(blocks, start, known, stride, options.head_temperature))


@pytest.mark.parametrize("pinned", [0, 3])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", TEACHERS)
def test_the_teachers_way_is_that_of_the_sampler(name: str, guidance: float, pinned: int) -> None:
    vae, prior, made = objective(
        name, 2, steps=8, guidance=guidance, guidance_interval=(0.2, 0.8),
        head_temperature=0.8 if "tokens" in name else 1.0,
    )  # fmt: skip
    source = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCABULARY, (2, LENGTH), generator=source)
    z1 = torch.randn(2, LENGTH, 8, generator=source)
    z0 = vae.to_prior(vae.encode(ids).mean)
    clean = torch.zeros(2, LENGTH, dtype=torch.bool)
    begin = LENGTH - BLOCK
    clean[:, begin : begin + pinned] = True
    found = way(made, prior, z0, clean, z1)[-1].moved[:, begin:]
    options = SamplingOptions(
        max_new_tokens=BLOCK - pinned, steps=8, guidance=guidance, guidance_interval=(0.2, 0.8),
        head_temperature=made.settings.teacher.head_temperature,
    )  # fmt: skip
    engine = Engine(vae, prior, options, 2, make_denoiser=PlainDenoiser)
    requests = [
        Request(i, row[: begin + pinned].tolist(), z1[i, begin:][None]) for i, row in enumerate(ids)
    ]
    for request, generation in engine.run(requests):
        expected = generation.latents[-1]
        torch.testing.assert_close(found[request.item], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("chain", [0, 16])
def test_of_conversations_a_student_learns_the_answers_alone(chain: int) -> None:
    vae, _, made = objective("tokens", 2)
    student: Distillation | Chained = made
    if chain:
        sizes = {"prediction": "tokens", "vocab_size": VOCABULARY, "passes": 1, "chain": chain}
        _, prior = small_networks(3, VOCABULARY, **sizes)
        student = Chained(prior, made.settings, LENGTH, vae.config)
    data, learnt = chats(), np.zeros((3, LENGTH), bool)
    assert data.response is not None
    for step in range(20):
        (drawn,) = student.draw(data, randomness.generators(0, 0, step, range(3)), step, False)
        own = drawn["token_weight" if chain else "moving_weight"] > 0
        assert (np.diff(drawn["clean"].reshape(-1, BLOCK).astype(int)) <= 0).all()  # known first
        learnt |= own
        before = ~data.response & (np.cumsum(data.response, 1) == 0)
        assert drawn["clean"][before].all()
    real = np.arange(LENGTH) < data.lengths[:, None]
    np.testing.assert_array_equal(learnt, data.response & real)


def test_blocks_begin_as_noise_except_where_they_are_known() -> None:
    vae, _ = networks("velocity")
    source = torch.Generator().manual_seed(7)
    mean, logvar, noise, z1 = torch.randn(4, 2, LENGTH, 8, generator=source)
    clean = torch.zeros(2, LENGTH, dtype=torch.bool)
    clean[1, BLOCK : BLOCK + 2] = True
    drawn = {"mean": mean, "logvar": logvar, "noise": noise, "z1": z1, "clean": clean}
    z0, start = begun_blocks(drawn, vae.config.to_prior, CleanData(clean="sample"))
    torch.testing.assert_close(z0, vae.to_prior(mean + (logvar / 2).exp() * noise))
    assert torch.equal(start[clean], z0[clean])
    assert torch.equal(start[~clean], z1[~clean])


@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("name", TEACHERS)
def test_one_step_with_the_target_goes_as_far_as_the_teachers_steps(name: str, passes: int) -> None:
    _, prior, made = objective(name, passes, steps=8, guidance=2.0)
    source = torch.Generator().manual_seed(6)
    z0, z1 = torch.randn(2, 2, LENGTH, 8, generator=source)
    clean = torch.zeros(2, LENGTH, dtype=torch.bool)
    clean[0, BLOCK : BLOCK + 2] = True
    steps = way(made, prior, z0, clean, z1)
    stride = 8 // passes
    for first in range(0, 8, stride):
        one = merged(steps[first : first + stride], prior, 1.0)
        output = one.output
        if prior.config.prediction == "tokens":
            moves = ((one.t > one.end) & ~clean[..., None]).expand_as(output)
            total = output.sum(-1, keepdim=True).expand_as(output)[moves]
            torch.testing.assert_close(total, torch.ones_like(total))
            output = output.log()
            if prior.config.evidence:  # which `to_velocity` adds again
                output = output - prior.token_logits(torch.zeros_like(output), one.z, one.t)
        velocity = prior.to_velocity(output, one.z, one.t)
        reached = one.z + (one.end - one.t) * velocity
        still = (one.t == one.end) | clean[..., None]
        reached = torch.where(still, one.z, reached)
        torch.testing.assert_close(reached, one.moved, atol=1e-5, rtol=1e-4)


def batch(made: Distillation, seed: int = 0) -> dict[str, Any]:
    source = np.random.default_rng(seed)
    clean = np.zeros((2, LENGTH), bool)
    clean[0, :2] = True
    arrays = {
        "mean": source.normal(size=(2, LENGTH, 8)), "logvar": source.normal(size=(2, LENGTH, 8)),
        "noise": source.normal(size=(2, LENGTH, 8)), "z1": source.normal(size=(2, LENGTH, 8)),
        "moving_weight": (~clean) / (~clean).sum(),
    }  # fmt: skip
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in arrays.items()}
    return tensors | {"clean": torch.from_numpy(clean)}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_student_of_as_many_passes_as_its_teacher_has_nothing_to_learn(name: str) -> None:
    made = objective(name, 4, steps=4, guidance=1.0)[2].eval()
    terms = made(batch(made), evaluate=True)
    assert terms["loss"].item() == pytest.approx(0, abs=1e-6)
    assert terms["gap"].item() == pytest.approx(0, abs=1e-8)
    other = objective(name, 4, steps=8, guidance=3.0)[2].eval()
    assert other(batch(other))["loss"].item() > 1e-4


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teacher_is_neither_trained_nor_saved(name: str) -> None:
    made = objective(name, 2, steps=4, guidance=2.0)[2]
    made(batch(made))["loss"].backward()
    assert {key.partition(".")[0] for key, _ in made.named_parameters()} == {"student"}
    assert all(parameter.grad is None for parameter in made._teacher[0].parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in made.student.parameters())


@pytest.mark.parametrize("name", ["tokens", "velocity"])
def test_a_student_learns_one_batch_by_heart(name: str) -> None:
    made = objective(name, 1, steps=8, guidance=2.0)[2]
    optimizer = torch.optim.Adam(made.student.parameters(), lr=3e-3)
    before = made(batch(made), evaluate=True)
    for _ in range(150):
        optimizer.zero_grad()
        made(batch(made))["loss"].backward()
        optimizer.step()
    after = made(batch(made), evaluate=True)
    assert after["loss"] < 0.02 * before["loss"]
    assert after["gap"] < 0.05 * before["gap_of_teacher"]
