"""Students with a chain: what it draws is what it learns, and the tokens of a block belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cola_cli.corpus.sequences import Rows
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.requests import Request
from cola_cli.settings.distill import DistillSettings
from cola_cli.settings.sample import SamplingOptions
from cola_cli.training.objectives.chained import Chained, cool
from tests.small_networks import BLOCK, small_networks

VOCABULARY, LENGTH, CHANNELS = 20, 8, 8


def networks(passes: int = 1) -> tuple[TextVAE, Prior]:
    return small_networks(
        5, VOCABULARY, prediction="tokens", vocab_size=VOCABULARY, passes=passes, chain=16
    )


def test_a_drawn_token_is_the_quantile_of_what_the_chain_learns() -> None:
    _, prior = networks()
    assert prior.chain is not None
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, BLOCK, prior.config.dim, generator=source)
    noise = torch.randn(64, BLOCK, CHANNELS, generator=source)
    tokens = prior.chain.choose(hidden, noise, prior.latent_out, 0.7)
    logits = prior.latent_out(prior.chain(hidden, tokens))
    upper = (logits / 0.7).softmax(-1).cumsum(-1).gather(-1, tokens[..., None])[..., 0]
    lower = upper - (logits / 0.7).softmax(-1).gather(-1, tokens[..., None])[..., 0]
    level = torch.special.ndtr(noise[..., 0])
    assert (lower - 1e-5 <= level).all()
    assert (level <= upper + 1e-5).all()
    assert len(tokens.unique()) > 5


def test_a_temperature_within_is_one_without() -> None:
    _, prior = networks()
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, BLOCK, prior.config.dim, generator=source)
    noise = torch.randn(8, BLOCK, CHANNELS, generator=source)
    time = torch.ones(1)
    before = prior.clean_estimate(hidden, noise, time, 0.4)
    cool(prior, 0.4)
    assert torch.equal(prior.clean_estimate(hidden, noise, time), before)


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_tokens_of_a_block_belong_together(passes: int) -> None:
    """Blocks of the text are 1 1 1 1 or 2 2 2 2, each as often: what positions on their own cannot write."""
    vae, prior = networks(passes)
    with torch.no_grad():
        prior.codes.copy_(vae.to_prior(vae.encode(torch.arange(VOCABULARY)[:, None]).mean)[:, 0])
    settings = DistillSettings.model_validate({"passes": passes, "data": {"clean": "mean"}})
    objective = Chained(prior, settings, LENGTH, vae.config)
    optimizer = torch.optim.Adam(prior.parameters(), lr=5e-3)
    source = np.random.default_rng(1)
    losses = []
    for step in range(400):
        tokens = source.integers(1, 3, (16, LENGTH // BLOCK)).repeat(BLOCK, 1)
        posterior = vae.encode(torch.from_numpy(tokens)).mean.detach().numpy().astype(np.float16)
        rows = Rows(np.arange(16), tokens, np.full(16, LENGTH), posterior, posterior)
        (drawn,) = objective.draw(rows, [source] * 16, step, False)
        batch = {name: torch.from_numpy(array) for name, array in drawn.items()}
        loss = objective(batch)["loss"] / batch["token_weight"].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # one decision a block: log 2 / 4 nats a token
    assert np.mean(losses[-20:]) < 0.2
    options = SamplingOptions(max_new_tokens=BLOCK, steps=passes, guidance=1.0)
    engine = Engine(vae, prior, options, batch_size=64)
    last = {r.item: g for r, g in engine.run(Request(i, [1] * BLOCK) for i in range(64))}
    whole = [set(one.ids) for one in last.values()]
    assert sum(len(block) == 1 for block in whole) >= 60
    assert {frozenset(block) for block in whole} >= {frozenset({1}), frozenset({2})}
    assert 16 <= sum(block == {1} for block in whole) <= 48
