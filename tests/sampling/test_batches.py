"""What a prompt becomes never depends on the batch that it is in, whatever the options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_cli.sampling.denoise import PlainDenoiser
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.fast import best_denoiser
from cola_cli.sampling.requests import Request
from cola_cli.settings.sample import SamplingOptions
from tests import golden

# Every option of generation; with `partial-repaint` the solver is Euler's.
OPTIONS = st.fixed_dictionaries(
    {
        "steps": st.integers(2, 4),
        "guidance": st.sampled_from([0.0, 1.0, 3.0]),
        "guidance_interval": st.sampled_from([(0.0, 1.0), (0.3, 0.8)]),
        "solver": st.sampled_from(["euler", "heun", "midpoint"]),
        "eta": st.sampled_from([0.0, 0.0, 0.5, 1.0]),
        "first_block": st.sampled_from(["clean-repaint", "partial-repaint", "left-pad", "right-pad"]),
        "repaint_times": st.integers(1, 3),
        "repaint_fraction": st.sampled_from([0.5, 1.0]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "top_k": st.sampled_from([None, 5]),
        "top_p": st.sampled_from([None, 0.8]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "compat": st.sampled_from(["none", "released"]),
        "history": st.sampled_from(["generated", "re-encoded"]),
        "seed": st.integers(0, 3),
    }
)  # fmt: skip
LENGTHS = st.lists(st.integers(1, 40), min_size=2, max_size=5)


def generations(
    prompts: list[list[int]], options: SamplingOptions, batch: int, maker: Any = best_denoiser
) -> list[list[int]]:
    model = golden.detail_model()
    engine = Engine(model.vae, model.prior, options, batch, 511, maker)
    last = {r.item: g for r, g in engine.run(Request(i, p) for i, p in enumerate(prompts))}
    return [last[i].ids for i in range(len(prompts))]


def chosen(options: dict[str, Any]) -> SamplingOptions:
    if options["first_block"] == "partial-repaint":
        options = options | {"solver": "euler", "eta": 0.0}
    if options["eta"]:
        options = options | {"solver": "euler"}
    if options["first_block"].endswith("pad"):
        options = options | {"history": "generated"}
    return SamplingOptions(max_new_tokens=9, **options)


@settings(max_examples=25)
@given(OPTIONS, LENGTHS)
def test_a_batch_gives_what_its_rows_give_alone(
    options: dict[str, Any], lengths: list[int]
) -> None:
    source = torch.Generator().manual_seed(sum(lengths))
    prompts = [torch.randint(0, 500, (n,), generator=source).tolist() for n in lengths]
    alone = generations(prompts, chosen(options), 1)
    assert generations(prompts, chosen(options), len(prompts)) == alone
    assert generations(prompts, chosen(options), 2) == alone


# What requests of one batch may differ in.
OWN = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 14),
        "guidance": st.sampled_from([0.0, 2.0, 3.0]),
        "temperature": st.sampled_from([0.0, 0.7, 1.0]),
        "top_k": st.sampled_from([None, 5]),
        "top_p": st.sampled_from([None, 0.8]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "seed": st.integers(0, 3),
        "stop_ids": st.sampled_from([(), (7, 300, 410)]),
    }
)


@settings(max_examples=20)
@given(OPTIONS, st.lists(st.tuples(st.integers(0, 20), OWN), min_size=2, max_size=6), st.data())
def test_rows_that_join_and_leave_at_any_block_give_what_they_give_alone(
    shared: dict[str, Any], given_rows: list[tuple[int, dict[str, Any]]], data: st.DataObject
) -> None:
    model = golden.detail_model()
    source = torch.Generator().manual_seed(len(given_rows))
    requests = [
        Request(
            item,
            torch.randint(0, 500, (length,), generator=source).tolist(),
            options=chosen(shared).model_copy(update=own),
        )
        for item, (length, own) in enumerate(given_rows)
    ]
    engine = Engine(model.vae, model.prior, requests[0].options, 3, 511)
    waiting, found, left = list(requests), {}, set()
    while waiting or engine.active:
        count = data.draw(st.integers(0 if engine.active else 1, engine.free))
        engine.join(waiting[:count])
        del waiting[:count]
        if engine.active and data.draw(st.booleans()):
            left.add(data.draw(st.sampled_from(engine.active)).request.item)
            engine.leave(lambda request: request.item in left)
        if engine.active:
            found |= {r.item: g for r, g in engine.step() if g.finish != "running"}
    assert found.keys() == {r.item for r in requests} - left
    for request in requests:
        if request.item in found:
            alone = Engine(model.vae, model.prior, request.options, 1, 511)
            *_, (_, expected) = alone.run([request])
            assert found[request.item].ids == expected.ids
            assert found[request.item].finish == expected.finish


@pytest.mark.parametrize("prompt", [3, 4, 9])
def test_a_re_encoded_history_is_what_the_same_tokens_would_be_as_a_prompt(prompt: int) -> None:
    model = golden.detail_model()
    block, channels = model.prior.config.block_size, model.prior.config.latent_dim
    source = torch.Generator().manual_seed(prompt)
    ids = torch.randint(0, 500, (prompt,), generator=source).tolist()
    noise = torch.randn(4, block, channels, generator=source)
    options = SamplingOptions(max_new_tokens=None, steps=3, guidance=2.0, history="re-encoded")

    def latents(prompt: list[int], noise: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        engine = Engine(model.vae, model.prior, options, 1, 511)
        *_, (_, generation) = engine.run([Request(0, prompt, noise)])
        return generation.ids, generation.latents

    new, whole = latents(ids, noise)
    text = ids + new
    for number in range(1, 4):
        known = text[: (prompt // block + number) * block]
        again = latents(known, noise[number:])[1]
        torch.testing.assert_close(again[0], whole[number], atol=1e-4, rtol=1e-4)
    options = options.model_copy(update={"history": "generated"})
    assert not torch.allclose(latents(ids, noise)[1][1:], whole[1:], atol=1e-2)


def test_a_re_encoded_history_is_refused_where_blocks_are_not_whole() -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        SamplingOptions(history="re-encoded", first_block="left-pad")


@settings(max_examples=10)
@given(OPTIONS, LENGTHS)
def test_the_fast_denoiser_gives_the_tokens_of_the_plain_one(
    options: dict[str, Any], lengths: list[int]
) -> None:
    source = torch.Generator().manual_seed(sum(lengths))
    prompts = [torch.randint(0, 500, (n,), generator=source).tolist() for n in lengths]
    plain = generations(prompts, chosen(options), 4, PlainDenoiser)
    assert generations(prompts, chosen(options), 4) == plain


def test_a_row_without_pins_is_not_renoised_beside_one_that_has_some() -> None:
    """Partial repaint executes the steps of the first block several times, for the prompt's sake alone."""
    block = golden.detail_model().prior.config.block_size
    prompts = [list(range(3, 3 + 2 * block)), list(range(9, 10 + 2 * block))]
    options = SamplingOptions(
        max_new_tokens=8, steps=4, first_block="partial-repaint", repaint_times=2, guidance=1.0
    )
    together = generations(prompts, options, 2)
    assert together == generations(prompts, options, 1)


@pytest.mark.parametrize("batch", [1, 10**9])
def test_an_absurd_batch_size_costs_nothing(batch: int) -> None:
    options = SamplingOptions(max_new_tokens=2, steps=1)
    assert len(generations([[1, 2, 3]], options, batch)) == 1
