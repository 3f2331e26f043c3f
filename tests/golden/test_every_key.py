"""Every tensor of both golden files: computed by cola and compared, or left out for a reason that is told.

A key that no entry below describes fails, and so does an entry that describes no key.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_cli.flow.path import interpolate
from cola_cli.models.attention import block_causal_mask, clean_and_noisy_mask
from cola_cli.models.prior import Prior, timestep_sinusoid
from cola_cli.models.rotary import rotation
from cola_cli.sampling.denoise import Trajectory
from cola_cli.sampling.engine import Generation
from cola_cli.sampling.noise import block_noise
from cola_cli.sampling.tokens import choose, penalised, probabilities
from cola_cli.settings.sample import SamplingOptions
from cola_cli.weights.released import prior_to_released
from tests import golden

BLOCK = 4
EXACT = 0.0
NETWORK = 5e-5  # one pass; the released code agrees with itself to about 5e-6 in other orders of summation
SINUSOID = 2e-4  # of angles up to 1000, whose float32 has steps of 6e-5
GRADIENT = 1e-4
LATENTS = 3e-4  # after 16 steps
ROUNDED = (
    1e-3  # with inputs in bf16 a last digit of float32 can move one of them by a whole bf16 step
)

# by file: pattern of the keys -> (what computes the tensor from the pattern's groups, tolerance)
COMPUTED: dict[str, dict[str, tuple[Callable[..., Tensor], float]]] = {"golden": {}, "detail": {}}
# what a comparison starts from
GIVEN = {
    "golden": [
        r"encode\.\d\.ids", r"decode\.z", r"dit\.(prefix|block|mixed_t)", r"train\.\d\.z[01]",
        r"generate\.\w+\.noise",
    ],
    "detail": [
        r"vae_encode/\d/ids", r"vae_decode/\d/z", "dit/(prefix_z0|z_t)", "dit/block/t_mixed/timestep",
        "dit/t_emb/timesteps", r"fm/z[01]/\d", r"fm/\w+/(loss_mask|timestep)/\d",
        r"fm/(mixed_bs|masked)/z_noisy/\d", "sampling/(logits|context_ids)", "gen/noise",
    ],
}  # fmt: skip
NOT_COMPARED = {
    "golden": {},
    "detail": {
        "mask_2l/3": "lengths that are no multiple of the block, which rows of training never have"
    },
}


def computes(file: str, pattern: str, tolerance: float = NETWORK) -> Callable[[Any], Any]:
    """Register what computes the tensors of the keys that match."""

    def register(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        COMPUTED[file][pattern] = compute, tolerance
        return compute

    return register


def tensors(file: str) -> dict[str, Tensor]:
    return golden.tensors() if file == "golden" else golden.detail()


def entries(file: str) -> list[str]:
    return [*COMPUTED[file], *GIVEN[file], *NOT_COMPARED[file]]


# golden.safetensors


@computes("golden", r"encode\.(\d)\.(mean|logvar)")
def first_posterior(index: str, part: str) -> Tensor:
    return getattr(golden.model().encode(golden.tensors()[f"encode.{index}.ids"][None]), part)[0]


@computes("golden", r"decode\.logits")
def first_logits() -> Tensor:
    return golden.model().decode(golden.tensors()["decode.z"][None])[0]


@computes("golden", r"dit\.velocity\.(prefix)_t0")
@computes("golden", r"dit\.velocity\.(mixed_t|cond|uncond)(?:_t([\d.]+))?")
def first_velocity(kind: str, time: str | None = None) -> Tensor:
    held = golden.tensors()
    if kind == "prefix":
        return golden.model().velocity(held["dit.prefix"][None], 0.0)[0]
    history = held["dit.prefix"][None] if kind == "cond" else None
    t = held["dit.mixed_t"][None] / 1000 if time is None else float(time) / 1000
    return golden.model().velocity(held["dit.block"][None], t, history)[0]


@computes("golden", r"train\.(\d)\.velocity")
def first_training_velocity(index: str) -> Tensor:
    z0, z1 = (golden.tensors()[f"train.{index}.{name}"][None] for name in ("z0", "z1"))
    time = golden.document()["train_t"][int(index)]
    t = torch.full((1, z0.shape[1] // BLOCK), time)
    z_t = interpolate(z0, z1, torch.tensor(time))
    return golden.clean_and_noisy_velocity(golden.model().prior, z0, z_t, t, BLOCK)[0]


@computes("golden", r"mask\.(\d)", EXACT)
def first_mask(index: str) -> Tensor:
    return block_causal_mask((16, 4)[int(index)], 16, BLOCK)


@computes("golden", r"generate\.(\w+)\.latents", LATENTS)
def first_generation(name: str) -> Tensor:
    recorded = golden.document()[f"generate.{name}"]
    with pytest.MonkeyPatch.context() as patch:
        golden.lay_stale_rotary_table(patch)
        found = golden.model().generate_ids(
            golden.document()["prompts"],
            max_new_tokens=None,
            noise=golden.tensors()[f"generate.{name}.noise"],
            steps=recorded["timestep_num"],
            guidance=recorded["guidance_scale"],
            repetition_penalty=recorded["repetition_penalty"],
            pad_id=golden.document()["pad_token_id"],
        )
    return torch.stack([generation.latents for generation in found])


# detail/golden.safetensors: the VAE


@computes("detail", r"vae_encode/(\d)/(mean|logvar)")
def posterior(index: str, part: str) -> Tensor:
    ids = golden.detail()[f"vae_encode/{index}/ids"][None]
    return getattr(golden.detail_model().encode(ids), part)[0]


@computes("detail", r"vae_encode_hidden/sample0/block(\d)")
def encoder_states(layer: str) -> Tensor:
    model, ids = golden.detail_model(), golden.detail()["vae_encode/0/ids"][None]
    return states(model.vae.encoder, lambda: model.encode(ids))[int(layer)]


@computes("detail", r"vae_decode/(\d)/logits")
def logits(index: str) -> Tensor:
    return golden.detail_model().decode(golden.detail()[f"vae_decode/{index}/z"][None])[0]


@computes("detail", r"vae_decode_inc/(\d)/logits")
def logits_block_by_block(index: str) -> Tensor:
    """The engine's own decoding with its cache, fed the given latents one block after another."""
    vae, z = golden.detail_model().vae, golden.detail()[f"vae_decode/{index}/z"][None]
    cache: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in cache:
            k, v = torch.cat((cache[layer][0], k), 2), torch.cat((cache[layer][1], v), 2)
        cache[layer] = k, v
        mask = block_causal_mask(q.shape[2], k.shape[2], vae.config.block_size)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool())

    with torch.inference_mode():
        found = [
            vae.decode(z[:, at : at + BLOCK], torch.arange(at, at + BLOCK), attend)[0]
            for at in range(0, z.shape[1], BLOCK)
        ]
    return torch.cat(found)


# the prior


@computes("detail", "dit/prefix_t0/(velocity|hidden_block)(\\d?)")
def clean_prefixes(part: str, layer: str) -> Tensor:
    model, found, start = golden.detail_model(), [], 0
    for length in filter(None, golden.detail_document()["dit"]["prefix_lens"]):
        prefix = golden.detail()["dit/prefix_z0"][start : start + length][None]
        start += length
        kept: list[Tensor] = []
        hidden = states(
            model.prior.blocks,
            lambda prefix=prefix, kept=kept: kept.append(model.velocity(prefix, 0.0)[0]),
        )
        found.append(kept[0] if part == "velocity" else hidden[int(layer)])
    return torch.cat(found)


@computes("detail", r"dit/block/t(?:(_mixed)|([\d.]+))/(cond|uncond)")
def velocities_after_prefixes(mixed: str | None, time: str | None, kind: str) -> Tensor:
    held, found, start = golden.detail(), [], 0
    for row, length in enumerate(golden.detail_document()["dit"]["prefix_lens"]):
        places = slice(BLOCK * row, BLOCK * row + BLOCK)
        history = held["dit/prefix_z0"][start : start + length][None] if kind == "cond" else None
        start += length
        t: float | Tensor = (
            float(time) / 1000 if time else held["dit/block/t_mixed/timestep"][places][None] / 1000
        )
        found.append(golden.detail_model().velocity(held["dit/z_t"][places][None], t, history)[0])
    return torch.cat(found)


@computes("detail", "dit/t_emb/(sinusoid|emb)", SINUSOID)
def timestep_embedding(part: str) -> Tensor:
    t = golden.detail()["dit/t_emb/timesteps"] / 1000
    if part == "sinusoid":
        return timestep_sinusoid(t)
    return golden.detail_model().prior.embed_timesteps(t)


@computes("detail", "dit/rope_freqs_0_11")
def rotary_angles() -> Tensor:
    """Angles; cola keeps their cosines and sines, once a pair of channels."""
    table = rotation(torch.arange(12), golden.detail_model().prior.frequencies)
    turns = (golden.detail()["dit/rope_freqs_0_11"][:, ::2] / (2 * torch.pi)).round()
    return (torch.atan2(table.sin, table.cos) + 2 * torch.pi * turns).repeat_interleave(2, -1)


# masks


@computes("detail", r"mask_na/(\d)", EXACT)
def mask(index: str) -> Tensor:
    case = golden.detail_document()["mask_na"][int(index)]
    pairs = zip(case["q_lens"], case["k_lens"], strict=True)
    return torch.block_diag(
        *[block_causal_mask(q, k, case["block_size"]).float() for q, k in pairs if k]
    )


@computes("detail", "mask_2l/([0124])", EXACT)
def training_mask(index: str) -> Tensor:
    """The last clean block, which nobody needs as a condition and cola leaves out, as it was given."""
    case, given = (
        golden.detail_document()["mask_2l"][int(index)],
        golden.detail()[f"mask_2l/{index}"],
    )
    whole, row, column = given.clone(), 0, 0
    for length, block in zip(case["seq_lens"], case["block_sizes"], strict=True):
        ours = clean_and_noisy_mask(length, block)
        kept = torch.cat((torch.arange(length - block), torch.arange(length, 2 * length)))
        if case["q"] == "noisy only":
            rows, ours = torch.arange(length), ours[-length:]
        else:
            rows = kept
        whole[(row + rows)[:, None], column + kept] = ours.to(whole.dtype)
        row += length if case["q"] == "noisy only" else 2 * length
        column += 2 * length
    return whole


# training


def flow_case(tag: str) -> dict[str, Any]:
    return next(c for c in golden.detail_document()["fm"]["cases"] if c["tag"] == tag)


@computes("detail", r"fm/plain/z_noisy/(\d)")
def noisy_latents(index: str) -> Tensor:
    z0, z1 = (golden.detail()[f"fm/{name}/{index}"] for name in ("z0", "z1"))
    return interpolate(z0, z1, torch.tensor(golden.detail_document()["fm"]["t"][int(index)]))


def noisy_velocity(prior: Prior, tag: str, index: int) -> Tensor:
    """Of sequence `index` through our training layout, also where known positions are at t = 0."""
    held, block = golden.detail(), flow_case(tag)["block_sizes"][index]
    times = held[f"fm/{tag}/timestep/{index}"] / 1000
    return golden.clean_and_noisy_velocity(
        prior,
        held[f"fm/z0/{index}"][None],
        held[f"fm/{tag}/z_noisy/{index}"][None],
        times[None],
        block,
    )[0]


@computes("detail", r"fm/(plain|mixed_bs|masked)/out_2L")
@torch.no_grad()
def training_outputs(tag: str) -> Tensor:
    """Clean halves as plain passes at t = 0, noisy halves through the training layout."""
    model, found = golden.detail_model(), []
    for index, block in enumerate(flow_case(tag)["block_sizes"]):
        model.prior.config = model.prior.config.model_copy(update={"block_size": block})
        found.append(model.velocity(golden.detail()[f"fm/z0/{index}"][None], 0.0)[0])
        found.append(noisy_velocity(model.prior, tag, index))
    return torch.cat(found)


def training_loss(prior: Prior, tag: str) -> Tensor:
    total, weights = torch.zeros(()), torch.zeros(())
    for index in range(3):
        held = golden.detail()
        target = held[f"fm/z1/{index}"] - held[f"fm/z0/{index}"]
        weight = held[f"fm/{tag}/loss_mask/{index}"]
        error = (noisy_velocity(prior, tag, index) - target).square().mean(-1)
        total, weights = total + (error * weight).sum(), weights + weight.sum()
    return total / weights


@computes("detail", r"fm/(plain|mixed_bs|masked)/loss")
@torch.no_grad()
def training_losses(tag: str) -> Tensor:
    return training_loss(golden.detail_model().prior, tag)[None]


@computes("detail", r"fm/plain/grad/(.+)", GRADIENT)
def training_gradient(name: str) -> Tensor:
    return gradients("plain")[name]


@functools.cache
def gradients(tag: str) -> dict[str, Tensor]:
    """By the released names, through the map that exports weights."""
    prior = golden.detail_model().prior.requires_grad_(True)
    training_loss(prior, tag).backward()
    with torch.no_grad():
        for parameter in prior.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    return prior_to_released(prior)


@pytest.mark.parametrize("tag", ["plain", "mixed_bs", "masked"])
def test_the_norms_of_all_gradients(tag: str) -> None:
    recorded = flow_case(tag)["grad_norms"]
    assert len(recorded) > 60
    for name, norm in recorded.items():
        assert gradients(tag)[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-5), name


# sampling


@computes("detail", r"sampling/(\d)/(argmax_ids|probs)", 1e-6)
def chosen(index: str, part: str) -> Tensor:
    held = golden.detail()
    case = golden.detail_document()["sampling"]["cases"][int(index)]
    found = []
    for row in range(2):
        seen = held["sampling/context_ids"][row] if case["context"] else torch.tensor([])
        own = penalised(held["sampling/logits"][row], seen.long(), case["repetition_penalty"])
        if part == "argmax_ids":
            found.append(choose(own, SamplingOptions(), None))
        else:
            found.append(
                probabilities(own, case["temperature"], case["top_k"] or None, case["top_p"])
            )
    return torch.stack(found)


# generation


@functools.cache
def generations(tag: str) -> tuple[list[Generation], list[tuple[int, Tensor]]]:
    """What a run gives, and z before every evaluation of the velocity."""
    recorded = golden.detail_document()["gen"]
    run = next(run for run in recorded["runs"] if run["tag"] == tag)
    blocks = golden.detail()[f"gen/{tag}/latents"].shape[1]
    released, seen = run["round_inputs"], []
    with pytest.MonkeyPatch.context() as patch:
        follow = Trajectory.follow

        def watched(
            own: Trajectory, rows: Any, start: Tensor, pins: Any, velocity: Any, *rest: Any
        ) -> Tensor:
            def noted(z: Tensor, evaluation: int) -> Tensor:
                seen.append((evaluation, z.clone()))
                return velocity(z, evaluation)

            return follow(own, rows, start, pins, noted, *rest)

        patch.setattr(Trajectory, "follow", watched)
        found = golden.detail_model().generate_ids(
            recorded["prompts"],
            max_new_tokens=run["max_new_tokens"] if released else None,
            noise=golden.detail()["gen/noise"][:, :blocks],
            steps=run["steps"],
            guidance=run["guidance_scale"],
            repetition_penalty=run["repetition_penalty"],
            pad_id=recorded["pad_id"],
            compat="released" if released else "none",
        )
    return found, seen


@computes("detail", r"gen/(?!sft|bf16_inputs)([^/]+)/latents", LATENTS)
@computes("detail", r"gen/(bf16_inputs[^/]+)/latents", ROUNDED)
def generated_latents(tag: str) -> Tensor:
    return torch.stack([generation.latents for generation in generations(tag)[0]])


@computes("detail", r"gen/([^/]+)/block_ids", EXACT)
def generated_ids(tag: str) -> Tensor:
    """The prompt's part of the first block, which cola does not give, as it was given."""
    whole = golden.detail()[f"gen/{tag}/block_ids"].clone()
    for row, generation in zip(whole, generations(tag)[0], strict=True):
        row[len(row) - len(generation.ids) :] = torch.tensor(generation.ids)
        assert len(generation.ids) > 0
    return whole


@computes("detail", r"gen/(cfg7_rp1\.1)/traj", LATENTS)
def trajectory(tag: str) -> Tensor:
    seen = generations(tag)[1]
    assert [evaluation for evaluation, _ in seen[:32]] == [*range(16), *range(16)]
    return torch.stack([z for _, z in seen[:32]]).unflatten(0, (2, 16))


@computes("detail", "gen/sft/latents", LATENTS)
def chat_latents() -> Tensor:
    recorded = golden.detail_document()["gen"]
    chat = recorded["sft_run"]
    start, user, assistant, newline, end = (
        chat[f"{name}_token_id"] for name in ("im_start", "user", "assistant", "newline", "im_end")
    )
    prompt = recorded["prompts"][chat["prompt_index"]]
    found = golden.detail_model().generate_ids(
        [[start, user, newline, *prompt, end, newline, start, assistant, newline]],
        max_new_tokens=None,
        noise=golden.detail()["gen/noise"][:1],
        pad_id=recorded["pad_id"],
    )[0]
    assert found.ids == chat["generated_ids"]
    return found.latents[None]


@computes("detail", "gen/seed66_id3_step0_noise", EXACT)
def released_noise() -> Tensor:
    return block_noise(66, 3, 0, (BLOCK, 8), released=True)


def states(blocks: nn.ModuleList, run: Callable[[], object]) -> list[Tensor]:
    """The hidden states (n, D) that each block gives while `run` runs."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[0])

    handles = [block.register_forward_hook(keep) for block in blocks]
    run()
    for handle in handles:
        handle.remove()
    return kept


KEYS = [(file, key) for file in COMPUTED for key in sorted(tensors(file))]


@pytest.mark.parametrize(("file", "key"), KEYS, ids=["/".join(pair) for pair in KEYS])
def test_every_key_is_matched_or_left_out_for_a_reason(file: str, key: str) -> None:
    described = [pattern for pattern in entries(file) if re.fullmatch(pattern, key)]
    assert len(described) == 1, f"{key} is described by {described}"
    if described[0] not in COMPUTED[file]:
        return
    compute, tolerance = COMPUTED[file][described[0]]
    match = re.fullmatch(described[0], key)
    assert match is not None
    expected = tensors(file)[key]
    found = compute(*match.groups()).detach()
    torch.testing.assert_close(found.to(expected.dtype), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("file", COMPUTED)
def test_every_description_has_keys(file: str) -> None:
    for pattern in entries(file):
        assert any(re.fullmatch(pattern, key) for key in tensors(file)), pattern
