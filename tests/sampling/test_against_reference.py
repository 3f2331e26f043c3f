"""The engine, all optimisations on, against a sampler that has none, for random models and batches."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cola_cli.api import Cola
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling.denoise import PlainDenoiser
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.fast import best_denoiser
from cola_cli.sampling.requests import Request
from cola_cli.settings.sample import SamplingOptions
from tests import golden
from tests.oracles import plain_generate as reference

# blocks in the shapes of buckets with masks, as on a GPU
IN_FIXED_SHAPES = functools.partial(best_denoiser, fixed_shapes=True)
VOCABULARY = 40
LATENT = 4


def random_model(draw: Any) -> Cola:
    """A small model of any shape that a released config can express, no weight zero."""
    heads = draw(st.sampled_from([1, 2, 3]))
    vae_block, prior_block = draw(st.sampled_from([(1, 2), (1, 4), (2, 4), (4, 4), (2, 2)]))
    vae = TextVAE(
        TextVAEConfig(
            vocab_size=VOCABULARY,
            encoder_layers=draw(st.sampled_from([1, 2])),
            decoder_layers=draw(st.sampled_from([1, 2])),
            dim=8 * heads,
            ffn_dim=24,
            latent_dim=LATENT,
            patch_size=draw(st.sampled_from([1, 2])),
            heads=heads,
            block_size=vae_block,
            scaling_factor=draw(st.sampled_from([1.0, 1.7])),
            shifting_factor=draw(st.sampled_from([0.0, 0.3])),
        )
    )
    prior = Prior(
        PriorConfig(
            latent_dim=LATENT,
            dim=12,
            heads=heads,
            head_dim=draw(st.sampled_from([8, 16])),  # by torch's operations, by the compiled ones
            layers=2,
            rope_dim=draw(st.sampled_from([4, 6, 8])),
            block_size=prior_block,
        )
    )
    torch.manual_seed(draw(st.integers(0, 10_000)))
    for network in (vae, prior):
        network.requires_grad_(False)
        for parameter in network.parameters():
            parameter.normal_(std=0.4)
    return Cola(vae, prior, None)


def expected(
    model: Cola, prompt: list[int], noise: torch.Tensor, steps: int, guidance: float
) -> tuple[list[int], torch.Tensor]:
    return reference.generate(
        prompt,
        noise,
        model.vae.state_dict(),
        model.vae.config,
        model.prior.state_dict(),
        model.prior.config,
        VOCABULARY - 1,
        steps,
        guidance,
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_batch_of_prompts_gives_what_each_gives_alone_without_caches(data: Any) -> None:
    model = random_model(data.draw)
    lengths = data.draw(st.lists(st.integers(0, 13), min_size=1, max_size=4))
    steps = data.draw(st.integers(1, 4))
    guidance = data.draw(st.sampled_from([0.0, 1.0, 2.5]))
    batch_size = data.draw(st.integers(1, 4))
    block = model.prior.config.block_size
    noise = torch.randn(len(lengths), data.draw(st.integers(1, 3)), block, LATENT)
    prompts = [torch.randint(0, VOCABULARY, (length,)).tolist() for length in lengths]
    options = SamplingOptions(max_new_tokens=None, steps=steps, guidance=guidance)
    maker = data.draw(st.sampled_from([PlainDenoiser, best_denoiser, IN_FIXED_SHAPES]))
    engine = Engine(model.vae, model.prior, options, batch_size, VOCABULARY - 1, maker)
    requests = [Request(i, prompt, noise[i]) for i, prompt in enumerate(prompts)]
    found = {request.item: generation for request, generation in engine.run(requests)}
    for item, (prompt, own_noise) in enumerate(zip(prompts, noise, strict=True)):
        generation = found[item]
        ids, latents = expected(model, prompt, own_noise, steps, guidance)
        torch.testing.assert_close(generation.latents, latents, atol=2e-4, rtol=1e-3)
        assert generation.ids == ids


def test_the_reference_agrees_with_the_first_golden_file() -> None:
    held, model = golden.tensors(), golden.model()
    vae, prior = model.vae.state_dict(), model.prior.state_dict()
    tolerance = {"atol": 1e-4, "rtol": 1e-4}
    for index in range(3):
        mean = reference.encode(held[f"encode.{index}.ids"].tolist(), vae, model.vae.config)
        torch.testing.assert_close(mean, held[f"encode.{index}.mean"], **tolerance)
    logits = reference.decode(held["decode.z"], vae, model.vae.config)
    torch.testing.assert_close(logits, held["decode.logits"], **tolerance)
    for name in ("0", "62.5", "500", "1000"):
        t = torch.full((4,), float(name) / 1000)
        for kind, history in (("cond", held["dit.prefix"]), ("uncond", held["dit.prefix"][:0])):
            v = reference.velocity(history, held["dit.block"], t, prior, model.prior.config)
            torch.testing.assert_close(v, held[f"dit.velocity.{kind}_t{name}"], **tolerance)


@pytest.mark.parametrize("tag", ["cfg7_rp1", "cfg1_rp1"])
def test_the_reference_agrees_with_the_released_code(tag: str) -> None:
    recorded = golden.detail_document()["gen"]
    run = next(run for run in recorded["runs"] if run["tag"] == tag)
    model = golden.detail_model()
    for index, prompt in enumerate(recorded["prompts"]):
        ids, latents = reference.generate(
            prompt,
            golden.detail()["gen/noise"][index],
            model.vae.state_dict(),
            model.vae.config,
            model.prior.state_dict(),
            model.prior.config,
            recorded["pad_id"],
            run["steps"],
            run["guidance_scale"],
        )
        assert ids == run["generated_ids"][index]
        known = golden.detail()[f"gen/{tag}/latents"][index]
        torch.testing.assert_close(latents, known, atol=3e-4, rtol=0)


def test_a_budget_in_tokens_is_kept_exactly_and_is_a_prefix_of_a_longer_one() -> None:
    model = golden.detail_model()
    prompts = golden.detail_document()["gen"]["prompts"]
    long = model.generate_ids(prompts, max_new_tokens=14, steps=3)
    for budget in (1, 5, 8):
        short = model.generate_ids(prompts, max_new_tokens=budget, steps=3)
        assert [g.ids for g in short] == [g.ids[:budget] for g in long]


def test_items_draw_their_own_noise() -> None:
    model = golden.detail_model()
    prompt = golden.detail_document()["gen"]["prompts"][0]
    first, second = model.generate_ids([prompt, prompt], max_new_tokens=8, steps=3)
    assert not torch.equal(first.latents, second.latents)


@pytest.mark.parametrize("strategy", ["clean-repaint", "partial-repaint", "left-pad", "right-pad"])
def test_without_a_mixed_block_all_first_block_strategies_agree(strategy: str) -> None:
    model = golden.detail_model()
    prompt = golden.detail_document()["gen"]["prompts"][1]  # whole blocks
    default = model.generate_ids([prompt], max_new_tokens=8, steps=3)[0]
    found = model.generate_ids([prompt], max_new_tokens=8, steps=3, first_block=strategy)[0]
    assert found.ids == default.ids


def test_padding_strategies_begin_on_a_block_of_pure_noise() -> None:
    """The prompt's latents are history, and no block holds any of them."""
    model = golden.detail_model()
    prompt = golden.detail_document()["gen"]["prompts"][2]
    block = model.prior.config.block_size
    noise = golden.detail()["gen/noise"][2:3]
    known = model.vae.to_prior(model.encode(torch.tensor([prompt + [511] * 3])).mean)[:, :13]
    for strategy in ("left-pad", "right-pad"):
        found = model.generate_ids(
            [prompt], max_new_tokens=None, noise=noise, steps=1, guidance=1.0, first_block=strategy
        )[0]
        assert len(found.ids) == noise.shape[1] * block
        # one Euler step from t = 1, computed in full with explicit positions and mask
        offset = 3 if strategy == "left-pad" else 0
        start = 16
        positions = torch.cat(
            (torch.arange(offset, offset + 13), torch.arange(start, start + block))
        )
        blocks = positions // block
        from tests.oracles.plain_train import forward

        v = forward(
            model.prior.state_dict(),
            model.prior.config,
            torch.cat((known[0], noise[0, 0])),
            torch.cat((torch.zeros(13), torch.ones(block))),
            positions,
            blocks[:, None] >= blocks[None],
            True,
        )[13:]
        torch.testing.assert_close(found.latents[0], noise[0, 0] - v, atol=1e-4, rtol=1e-4)


def test_partial_repaint_leaves_known_positions_free_in_the_end() -> None:
    model = golden.detail_model()
    prompt = golden.detail_document()["gen"]["prompts"][2]
    noise = golden.detail()["gen/noise"][2:3]
    options: dict[str, Any] = {"max_new_tokens": None, "noise": noise, "steps": 4, "guidance": 1.0}
    pinned = model.generate_ids([prompt], **options)[0].latents[0, 0]
    known = model.vae.to_prior(model.encode(torch.tensor([prompt + [511] * 3])).mean)[0, 12]
    torch.testing.assert_close(pinned, known, atol=1e-5, rtol=0)
    free = model.generate_ids(
        [prompt], first_block="partial-repaint", repaint_fraction=0.5, **options
    )
    assert not torch.allclose(free[0].latents[0, 0], known, atol=1e-2)
    repeated = model.generate_ids(
        [prompt], first_block="partial-repaint", repaint_times=3, **options
    )
    again = model.generate_ids([prompt], first_block="partial-repaint", repaint_times=3, **options)
    assert torch.equal(repeated[0].latents, again[0].latents)
    assert not torch.equal(repeated[0].latents, free[0].latents)


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_partial_repaint_is_the_described_one(fraction: float) -> None:
    """In early steps the known positions hold their own point of the path from noise to latent."""
    model, steps = golden.detail_model(), 4
    prompt = golden.detail_document()["gen"]["prompts"][2]  # three blocks and one token
    noise = golden.detail()["gen/noise"][2:3, :1]
    found = model.generate_ids(
        [prompt],
        max_new_tokens=None,
        noise=noise,
        steps=steps,
        guidance=3.0,
        first_block="partial-repaint",
        repaint_fraction=fraction,
    )[0]
    latents = model.vae.to_prior(model.encode(torch.tensor([prompt + [511] * 3])).mean)
    history, known, z = latents[:, :12], latents[:, 12], noise[:, 0].clone()
    for index in range(steps):
        t = 1 - index / steps
        if index < fraction * steps:
            z[:, 0] = (1 - t) * known + t * noise[:, 0, 0]
        alone = model.velocity(z, t)
        z = z - (alone + 3.0 * (model.velocity(z, t, history) - alone)) / steps
    torch.testing.assert_close(found.latents[0], z[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", ["heun", "midpoint"])
def test_solvers_of_second_order_follow_the_same_path_written_out(solver: str) -> None:
    model = golden.detail_model()
    prompt = golden.detail_document()["gen"]["prompts"][1]
    noise = golden.detail()["gen/noise"][1:2, :1]
    options: dict[str, Any] = {"max_new_tokens": None, "noise": noise, "guidance": 1.0, "steps": 2}
    found = model.generate_ids([prompt], solver=solver, **options)[0].latents[0]
    history = model.vae.to_prior(model.encode(torch.tensor([prompt])).mean)
    z = noise[:, 0]
    for t, end in ((1.0, 0.5), (0.5, 0.0)):
        first = model.velocity(z, t, history)
        if solver == "heun":
            second = model.velocity(z + (end - t) * first, end, history)
            z = z + (end - t) * (first + second) / 2
        else:
            middle = z + (end - t) / 2 * first
            z = z + (end - t) * model.velocity(middle, (t + end) / 2, history)
    torch.testing.assert_close(found, z[0], atol=1e-4, rtol=1e-4)


def test_guidance_outside_its_interval_is_plain_and_sixty_does_not_overflow() -> None:
    model = golden.detail_model()
    prompt = golden.detail_document()["gen"]["prompts"][1]
    options: dict[str, Any] = {
        "max_new_tokens": None,
        "noise": golden.detail()["gen/noise"][1:2],
        "steps": 4,
    }
    plain = model.generate_ids([prompt], guidance=1.0, **options)[0].latents
    never = model.generate_ids([prompt], guidance=7.0, guidance_interval=(0.3, 0.4), **options)[
        0
    ].latents  # no time of the grid 1, 0.75, 0.5, 0.25 lies in it
    assert torch.equal(plain, never)
    strong = model.generate_ids([prompt], guidance=60.0, **options)[0].latents
    assert strong.isfinite().all()


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = golden.detail_model()
    prompts = golden.detail_document()["gen"]["prompts"]
    whole = model.generate_ids(prompts, max_new_tokens=8, steps=2)
    denoise = Engine._denoise

    def small_memory(engine: Engine, rows: list[Any]) -> torch.Tensor:
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return denoise(engine, rows)

    monkeypatch.setattr(Engine, "_denoise", small_memory)
    told: list[str] = []
    requests = [Request(item, prompt) for item, prompt in enumerate(prompts)]
    found = {
        request.item: generation
        for request, generation in model.stream_requests(
            requests, SamplingOptions(max_new_tokens=8, steps=2), batch_size=4, warn=told.append
        )
    }
    assert [found[item].ids for item in range(4)] == [g.ids for g in whole]
    assert len(told) == 2
    assert "2 prompts at a time" in told[0]
