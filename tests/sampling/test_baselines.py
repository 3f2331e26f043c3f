"""Sampling of the baselines: cached equals uncached, alone equals together, masks filled as the rule says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_cli.api import Baseline
from cola_cli.families import AUTOREGRESSIVE, LLADA
from cola_cli.models.config import TransformerConfig
from cola_cli.models.transformer import Transformer
from cola_cli.sampling.masked_diffusion import shares

VOCABULARY = 17
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5], [8, 9, 7], [1, 1], [4, 4, 4, 4]]


def baseline(causal: bool, seed: int = 0) -> Baseline:
    config = TransformerConfig(
        vocab_size=VOCABULARY, causal=causal, layers=2, dim=24, ffn_dim=40, heads=2, head_dim=12
    )
    generator = torch.Generator().manual_seed(seed)
    network = Transformer(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    token_model = (AUTOREGRESSIVE if causal else LLADA).token_model
    assert token_model is not None
    return Baseline(network, token_model)


def without_cache(model: Baseline, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model.network(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def filled_in(model: Baseline, prompt: list[int], count: int, passes: int, block: int) -> list[int]:
    """LLaDA's rule, one sequence and one token at a time."""
    mask = VOCABULARY
    ids = prompt + [mask] * count
    for start in range(len(prompt), len(ids), block):
        stop = min(start + block, len(ids))
        for kept in shares(stop - start, max(1, round(passes * (stop - start) / count))):
            chances = model.network(torch.tensor([ids]))[0].detach().softmax(-1)
            guesses = [(float(chances[i].max()), i) for i in range(start, stop) if ids[i] == mask]
            for _, i in sorted(guesses, reverse=True)[:kept]:
                ids[i] = int(chances[i].argmax())
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_autoregressive_sampling_with_the_cache_is_that_without(batch_size: int) -> None:
    model = baseline(causal=True)
    found = model.generate_ids(PROMPTS, max_new_tokens=11, batch_size=batch_size, stop_ids=())
    assert [one.ids for one in found] == [without_cache(model, p, 11) for p in PROMPTS]


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize(("passes", "block"), [(0, 0), (3, 0), (4, 4), (8, 3), (1, 0)])
def test_masks_are_filled_by_confidence(batch_size: int, passes: int, block: int) -> None:
    model = baseline(causal=False)
    found = model.generate_ids(
        PROMPTS,
        max_new_tokens=8,
        batch_size=batch_size,
        stop_ids=(),
        unmask_steps=passes,
        unmask_block=block,
    )
    expected = [filled_in(model, prompt, 8, passes or 8, block or 8) for prompt in PROMPTS]
    assert [one.ids for one in found] == expected


@pytest.mark.parametrize("causal", [True, False])
def test_a_drawn_sample_depends_on_its_number_and_seed_and_not_on_the_batch(causal: bool) -> None:
    model = baseline(causal)
    options = {"max_new_tokens": 9, "temperature": 1.0, "top_k": 9, "stop_ids": ()}
    together = model.generate_ids(PROMPTS, **options)
    apart = model.generate_ids(PROMPTS, batch_size=1, **options)
    assert [one.ids for one in together] == [one.ids for one in apart]
    other = model.generate_ids(PROMPTS, seed=1, **options)
    assert [one.ids for one in together] != [one.ids for one in other]


@pytest.mark.parametrize("causal", [True, False])
def test_the_text_ends_before_an_end_token(causal: bool) -> None:
    model = baseline(causal)
    whole = model.generate_ids(PROMPTS, max_new_tokens=8, stop_ids=())
    end = whole[0].ids[4]
    found = model.generate_ids(PROMPTS, max_new_tokens=8, stop_ids=(end,))
    for one, other in zip(found, whole, strict=True):
        expected = other.ids[: other.ids.index(end)] if end in other.ids else other.ids
        assert (one.ids, one.finish) == (expected, "stop" if end in other.ids else "length")


@given(st.integers(1, 300), st.integers(1, 400))
@settings(deadline=None)
def test_every_mask_is_filled_once(tokens: int, passes: int) -> None:
    parts = shares(tokens, passes)
    assert sum(parts) == tokens
    assert len(parts) == min(tokens, passes)
    assert max(parts) - min(parts) <= 1


def test_options_that_a_baseline_has_no_use_for_are_refused() -> None:
    with pytest.raises(ValueError, match="repetition penalty"):
        baseline(causal=False).generate_ids([[1]], max_new_tokens=2, repetition_penalty=1.1)
    with pytest.raises(ValueError, match="empty prompt"):
        baseline(causal=True).generate_ids([[]], max_new_tokens=2)
