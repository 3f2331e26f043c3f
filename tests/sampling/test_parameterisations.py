"""Priors of every parameterisation: fast denoisers give what the plain one gives, and rows stay their own."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch

from cola_cli.errors import UsageError
from cola_cli.flow.path import position_times
from cola_cli.flow.solvers import uniform_grid
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling import denoise
from cola_cli.sampling.denoise import Estimates, PlainDenoiser
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.fast import best_denoiser
from cola_cli.sampling.noise import block_noise
from cola_cli.sampling.requests import Generation, Request
from cola_cli.settings.sample import SamplingOptions
from cola_cli.training.objectives.distillation import Blocks
from tests.small_networks import BLOCK, small_networks

VOCABULARY = 60
PRIORS: dict[str, dict[str, Any]] = {
    "latent": {"prediction": "latent"},
    "tokens": {"prediction": "tokens", "vocab_size": VOCABULARY},
    "staggered": {"stagger": 1.5},
    "staggered tokens": {"prediction": "tokens", "vocab_size": VOCABULARY, "stagger": 3.0},
    "causal history": {
        "prediction": "tokens", "vocab_size": VOCABULARY, "stagger": 1.0, "causal_history": True,
    },
    "residual": {"prediction": "tokens", "vocab_size": VOCABULARY, "stagger": 1.0, "residual": True},
    "evidence": {
        "prediction": "tokens", "vocab_size": VOCABULARY, "stagger": 1.0, "causal_history": True,
        "evidence": True,
    },
    "self-conditioned": {
        "prediction": "tokens", "vocab_size": VOCABULARY, "stagger": 1.0, "self_conditioning": True,
    },
}  # fmt: skip


STUDENTS: dict[str, dict[str, Any]] = {
    f"of {passes}, {chain} wide": PRIORS["staggered tokens"] | {"passes": passes, "chain": chain}
    for passes, chain in ((1, 0), (1, 24), (2, 0), (2, 24), (4, 0), (4, 24))
}


@functools.cache
def networks(name: str) -> tuple[TextVAE, Prior]:
    return small_networks(4, VOCABULARY, **(PRIORS | STUDENTS)[name])


def generations(name: str, batch: int, maker: Any, **options: Any) -> list[Generation]:
    vae, prior = networks(name)
    chosen = SamplingOptions(**({"max_new_tokens": 11, "steps": 5} | options))
    engine = Engine(vae, prior, chosen, batch, VOCABULARY - 1, maker)
    source = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, VOCABULARY, (n,), generator=source).tolist() for n in (3, 8, 9, 17)]
    last = {r.item: g for r, g in engine.run(Request(i, p) for i, p in enumerate(prompts))}
    return [last[i] for i in range(len(prompts))]


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"guidance": 1.0}, {"solver": "midpoint", "head_temperature": 0.7},
     {"first_block": "right-pad"}, {"eta": 0.6, "guidance": 2.0}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", PRIORS)
def test_every_denoiser_gives_the_same_latents(
    name: str, options: dict[str, Any], fixed_shapes: bool
) -> None:
    plain = generations(name, 4, PlainDenoiser, **options)
    maker = functools.partial(best_denoiser, fixed_shapes=fixed_shapes)
    fast = generations(name, 4, maker, **options)
    alone = generations(name, 1, maker, **options)
    for one, other, single in zip(plain, fast, alone, strict=True):
        torch.testing.assert_close(other.latents, one.latents, atol=2e-4, rtol=2e-3)
        assert one.ids == other.ids == single.ids


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_what_was_said_of_one_text_is_not_heard_by_the_next_in_its_place(
    fixed_shapes: bool,
) -> None:
    maker = functools.partial(best_denoiser, fixed_shapes=fixed_shapes)
    chosen = SamplingOptions(max_new_tokens=8, steps=4, guidance=1.0)
    prompts: list[list[int]] = [list(range(2 * BLOCK)), []]
    found = []
    for before in (0, 1):
        engine = Engine(*networks("evidence"), chosen, 1, VOCABULARY - 1, maker)
        requests = (Request(i, prompt) for i, prompt in enumerate(prompts) if i >= before)
        found.append({r.item: g for r, g in engine.run(requests)}[1])
    assert found[0].ids == found[1].ids
    torch.testing.assert_close(found[0].latents, found[1].latents)


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_gives_the_same_tokens_alone_and_in_a_batch(
    name: str, fixed_shapes: bool
) -> None:
    passes = networks(name)[1].config.passes
    maker = functools.partial(best_denoiser, fixed_shapes=fixed_shapes)
    options = {"steps": passes, "guidance": 1.0}
    plain = generations(name, 4, PlainDenoiser, **options)
    for batch in (1, 3, 4):
        found = generations(name, batch, maker, **options)
        for one, other in zip(plain, found, strict=True):
            torch.testing.assert_close(other.latents, one.latents, atol=2e-4, rtol=2e-3)
            assert one.ids == other.ids
    with pytest.raises(UsageError, match=f"distilled for {passes} passes"):
        generations(name, 1, maker, steps=passes, guidance=2.0)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_gives_the_same_blocks_without_a_cache(name: str) -> None:
    """All blocks of a text at once, each behind the whole history, as in training."""
    vae, prior = networks(name)
    config, n = prior.config, 3
    prompts = [list(range(2 * BLOCK)), list(range(20, 20 + BLOCK))]
    chosen = SamplingOptions(max_new_tokens=n * BLOCK, steps=config.passes, guidance=1.0)
    last = {r.item: g for r, g in Engine(vae, prior, chosen, 2).run(
        Request(i, prompt) for i, prompt in enumerate(prompts)
    )}  # fmt: skip
    grid = position_times(torch.tensor(uniform_grid(config.passes)), config.stagger, BLOCK)
    if config.chain:  # the groups that are still noise at the beginning of a pass, and at the end
        group = torch.arange(BLOCK) // (BLOCK // config.passes)
        grid = (group >= torch.arange(config.passes + 1)[:, None]).float()
    values, levels = grid.unique(return_inverse=True)
    for item, prompt in enumerate(prompts):
        prefix = vae.to_prior(vae.encode(torch.tensor([prompt])).mean)[0]
        made = last[item].latents
        before = len(prompt) // BLOCK
        z0 = torch.cat((prefix, made.flatten(0, 1)))[None]
        noise = [block_noise(0, item, i, (BLOCK, config.latent_dim), False) for i in range(n)]
        z = torch.cat((prefix.unflatten(0, (before, BLOCK)), torch.stack(noise)))
        blocks = Blocks(prior, z0, torch.zeros(z0.shape[:2], dtype=torch.bool), values)
        for i in range(config.passes):
            output = blocks(z.flatten(0, 1)[None], levels[i].repeat(len(z)), None)
            output, t = output[0].unflatten(0, (-1, BLOCK)), grid[i].unsqueeze(-1)
            z = z + (grid[i + 1].unsqueeze(-1) - t) * prior.to_velocity(output, z, t)
        torch.testing.assert_close(z[before:], made, atol=2e-4, rtol=2e-3)


def test_what_a_chain_chose_is_read_without_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, prior = networks("of 1, 24 wide")
    greedy = SamplingOptions(max_new_tokens=11, steps=1, guidance=1.0)
    warm = greedy.model_copy(update={"temperature": 0.8})
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]

    def ids(both: list[SamplingOptions], chosen: list[int]) -> list[list[int]]:
        engine = Engine(vae, prior, greedy, 2)
        requests = [Request(i, prompts[i], options=both[i]) for i in chosen]
        last = {r.item: g for r, g in engine.run(requests)}
        for i in chosen:
            if both[i] is greedy:
                read = prior.nearest_tokens(last[i].latents).flatten().tolist()
                trim = len(prompts[i]) % BLOCK
                assert last[i].ids == read[trim : trim + 11]
        return [last[i].ids for i in chosen]

    both = ids([greedy, warm], [0, 1])
    assert both == [*ids([greedy, warm], [0]), *ids([greedy, warm], [1])]
    assert ids([warm, warm], [0]) != both[:1]

    def refused(*arguments: Any) -> Any:
        raise AssertionError("the decoder was asked")

    monkeypatch.setattr(type(vae), "decode_hidden", refused)
    assert ids([greedy, warm], [0]) == both[:1]


def test_a_chain_of_weights_that_are_not_finite_is_noticed() -> None:
    vae, prior = small_networks(4, VOCABULARY, **STUDENTS["of 1, 24 wide"])
    prior.latent_out.bias.data[3] = torch.nan
    engine = Engine(vae, prior, SamplingOptions(max_new_tokens=4, steps=1, guidance=1.0), 1)
    with pytest.raises(FloatingPointError):
        list(engine.run([Request(0, [1, 2, 3])]))


@pytest.mark.parametrize(
    ("passes", "options", "said"),
    [
        (1, {"steps": 2}, "distilled for passes=1"),
        (1, {"steps": 1, "solver": "midpoint"}, "distilled for passes=1"),
        (2, {"steps": 4}, "distilled for passes=2"),
        (2, {"steps": 1, "solver": "midpoint"}, "distilled for passes=2"),
        (2, {"grid": [1.0, 0.7, 0.0]}, "distilled for passes=2"),
        (2, {"steps": 2, "settle": 1}, "decides a token in one pass"),
        (2, {"steps": 2, "first_block": "partial-repaint"}, "are staggered"),
    ],
    ids=str,
)
def test_a_student_with_a_chain_takes_its_passes(
    passes: int, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        generations(f"of {passes}, 24 wide", 1, best_denoiser, guidance=1.0, **options)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", ["tokens", "staggered tokens", "residual", "self-conditioned"])
def test_rows_whose_tokens_have_settled_take_no_more_passes_and_the_others_go_on(
    name: str, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    velocity = Estimates.velocity

    def counting(self: Estimates, output: Any, z: Any, t: Any) -> Any:
        seen.append(0 if output is None else len(output))
        return velocity(self, output, z, t)

    monkeypatch.setattr(Estimates, "velocity", counting)
    options = {"steps": 24, "guidance": guidance}

    def passes_taken(settle: int, maker: Any = best_denoiser, batch: int = 4) -> int:
        seen.clear()
        found = generations(name, batch, maker, **options, settle=settle)
        own = [one.ids for one in found]
        assert ids.setdefault(settle, own) == own
        return sum(seen)

    ids: dict[int, list[list[int]]] = {}
    monkeypatch.setattr(denoise, "SURE", 1.0)  # nobody is so sure
    every = passes_taken(1)
    ids.clear()
    monkeypatch.setattr(denoise, "SURE", 0.02)
    ways = list(itertools.product((PlainDenoiser, best_denoiser), (1, 4)))
    assert {passes_taken(settle, *way) for settle in (0, 99) for way in ways} == {every}
    assert ids[99] == ids[0]
    (few,) = {passes_taken(1, *way) for way in ways}
    assert few < 0.8 * every


def test_blocks_without_a_token_head_do_not_settle() -> None:
    with pytest.raises(UsageError, match="settle looks at the tokens"):
        generations("latent", 1, best_denoiser, settle=1)


def test_heun_is_refused_where_there_is_no_velocity_at_the_end() -> None:
    with pytest.raises(UsageError, match="needs the velocity at t = 0"):
        generations("tokens", 1, best_denoiser, solver="heun")
    generations("staggered", 1, best_denoiser, solver="heun")


def test_a_staggered_prior_repaints_nothing_partially() -> None:
    with pytest.raises(UsageError, match="share one time"):
        generations("staggered", 1, best_denoiser, first_block="partial-repaint")


def test_the_first_position_is_clean_before_the_last_one_begins() -> None:
    """With S = b - 1 the positions move one after another: a later one cannot change an earlier one."""
    vae, prior = networks("staggered tokens")
    options = SamplingOptions(max_new_tokens=4, steps=8, guidance=1.0)
    seen: list[torch.Tensor] = []
    engine = Engine(vae, prior, options, 1, VOCABULARY - 1, PlainDenoiser)
    engine.denoiser.shown = lambda t, z: seen.append(z.clone())
    list(engine.run([Request(0, [1, 2, 3, 4])]))
    for index, z in enumerate(seen[1:], 1):
        moved = (z != seen[index - 1]).any(-1)[0]
        assert moved.nonzero().flatten().tolist() == [(index - 1) // 2]
