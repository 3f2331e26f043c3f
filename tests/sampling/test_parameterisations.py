"""Priors of every parameterisation: fast denoisers give what the plain one gives, and rows stay their own."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from cola_cli.errors import UsageError
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling.denoise import Estimates, PlainDenoiser
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.fast import best_denoiser
from cola_cli.sampling.requests import Generation, Request
from cola_cli.settings.sample import SamplingOptions
from tests.small_networks import small_networks

VOCABULARY = 60
PRIORS: dict[str, dict[str, Any]] = {
    "latent": {"prediction": "latent"},
    "tokens": {"prediction": "tokens", "vocab_size": VOCABULARY},
    "staggered": {"stagger": 1.5},
    "staggered tokens": {"prediction": "tokens", "vocab_size": VOCABULARY, "stagger": 3.0},
    "self-conditioned": {
        "prediction": "tokens", "vocab_size": VOCABULARY, "stagger": 1.0, "self_conditioning": True,
    },
}  # fmt: skip


STUDENTS: dict[str, dict[str, Any]] = {
    f"of {passes}, {chain} wide": PRIORS["staggered tokens"] | {"passes": passes, "chain": chain}
    for passes, chain in ((1, 0), (1, 24), (2, 0), (4, 0))
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


@pytest.mark.parametrize("options", [{"steps": 2}, {"steps": 1, "solver": "midpoint"}], ids=str)
def test_a_student_with_a_chain_takes_one_pass(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="distilled for one pass a block, not 2"):
        generations("of 1, 24 wide", 1, best_denoiser, guidance=1.0, **options)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", ["tokens", "staggered tokens", "self-conditioned"])
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
    passes, ids = {}, {}
    for settle in (0, 1, 99):
        for maker in (PlainDenoiser, best_denoiser):
            for batch in (1, 4):
                seen.clear()
                found = generations(name, batch, maker, **options, settle=settle)
                passes.setdefault(settle, set()).add(sum(seen))
                own = [one.ids for one in found]
                assert ids.setdefault(settle, own) == own
    assert ids[99] == ids[0]
    assert passes[99] == passes[0]
    (few,), (all_,) = passes[1], passes[0]
    assert few < 0.8 * all_


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
