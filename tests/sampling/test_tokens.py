"""Choosing tokens, by hand-made logits."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_cli.sampling.tokens import choose, penalised, probabilities
from cola_cli.settings.sample import SamplingOptions

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def test_temperature_sharpens_and_flattens() -> None:
    assert torch.allclose(probabilities(LOGITS, 1.0, None, None), LOGITS.exp())
    squared = LOGITS.exp().square()
    assert torch.allclose(probabilities(LOGITS, 0.5, None, None), squared / squared.sum())


def test_top_k_keeps_what_ties_with_the_last_kept() -> None:
    tied = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert (probabilities(tied, 1.0, 2, None) > 0).tolist() == [[True, True, True, False]]
    assert (probabilities(tied, 1.0, 1, None) > 0).tolist() == [[True, False, False, False]]
    assert (probabilities(tied, 1.0, 9, None) > 0).all()


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    kept = {p: int((probabilities(LOGITS, 1.0, None, p) > 0).sum()) for p in (0.1, 0.6, 0.9, 1.0)}
    assert kept == {0.1: 1, 0.6: 2, 0.9: 3, 1.0: 4}


def test_a_penalty_moves_seen_tokens_down_whatever_their_sign_and_changes_no_input() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0], [4.0, 4.0, 4.0, 4.0]])
    before = logits.clone()
    found = penalised(logits, torch.tensor([0, 1, 1]), 2.0)
    assert found.tolist() == [[1.0, -4.0, 1.0, -1.0], [2.0, 2.0, 4.0, 4.0]]
    assert torch.equal(logits, before)
    assert penalised(logits, torch.tensor([], dtype=torch.long), 2.0) is logits


def test_draws_follow_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = choose(LOGITS.expand(20_000, -1), SamplingOptions(temperature=1.0), generator)
    shares = drawn.bincount(minlength=4) / len(drawn)
    assert torch.allclose(shares, LOGITS.exp()[0], atol=0.015)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 1000), st.floats(0.1, 3), st.none() | st.integers(1, 12), st.none() | st.floats(0.01, 1)
)  # fmt: skip
def test_probabilities_sum_to_one_and_keep_the_likeliest(
    seed: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(seed))
    found = probabilities(logits, temperature, top_k, top_p)
    assert torch.allclose(found.sum(-1), torch.ones(3))
    assert torch.equal(found.argmax(-1), logits.argmax(-1))
    if top_k is not None:
        assert ((found > 0).sum(-1) <= top_k).all()
    assert torch.equal(
        choose(logits, SamplingOptions(top_k=top_k, top_p=top_p), None), logits.argmax(-1)
    )
