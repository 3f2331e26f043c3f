"""The baselines' losses against explicit sums and exact enumeration, their sizes, their order of rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.models.config import PriorConfig, TransformerConfig, matched_sizes
from cola_cli.models.transformer import Transformer
from cola_cli.training import randomness
from cola_cli.training.objectives.baselines import MaskedDiffusion, NextToken
from cola_cli.training.objectives.objective import Objective
from cola_cli.training.reader import make_step, scaled
from tests.training.conftest import LENGTH, VOCABULARY, chats, randomise, rows


def network(causal: bool, vocabulary: int = VOCABULARY) -> Transformer:
    config = TransformerConfig(
        vocab_size=vocabulary,
        causal=causal,
        layers=2,
        dim=16,
        ffn_dim=24,
        heads=2,
        head_dim=6,
        rope_theta=100.0,
    )
    made = Transformer(config).double()
    randomise(made, 0)
    return made


def one_batch(objective: Objective, sequences: Rows, step: int = 0) -> dict[str, Tensor]:
    drawn = make_step(objective, sequences, list(range(len(sequences))), step, 0, 64, 0)
    batch = scaled(drawn.batches[0], drawn.counts, 1)
    tensors = {name: torch.as_tensor(value) for name, value in batch.items()}
    return {n: x.double() if x.is_floating_point() else x for n, x in tensors.items()}


def logits_by_hand(model: Transformer, ids: list[int]) -> Tensor:
    """The transformer on one sequence, position by position and head by head, (n, vocab)."""
    config, w = model.config, dict(model.named_parameters())

    def rms(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[name]

    n, width = len(ids), config.head_dim
    x = w["embedding.weight"][ids]
    pairs = torch.arange(width // 2, dtype=torch.float64)
    angles = torch.arange(n)[:, None] / config.rope_theta ** (2 * pairs / width)
    turn = torch.polar(torch.ones_like(angles), angles)
    for layer in range(config.layers):
        name = f"blocks.{layer}"
        h = rms(x, f"{name}.attention_norm.weight")
        q, k, v = (h @ w[f"{name}.qkv.weight"].T).reshape(n, 3, config.heads, width).unbind(1)
        out = torch.zeros_like(q)
        for head in range(config.heads):
            turned = []
            for part in (q[:, head], k[:, head]):
                both = torch.complex(part[:, : width // 2], part[:, width // 2 :]) * turn
                turned.append(torch.cat((both.real, both.imag), -1))
            for i in range(n):
                seen = range(i + 1) if config.causal else range(n)
                scores = torch.stack([turned[0][i] @ turned[1][j] / math.sqrt(width) for j in seen])
                shares = scores.exp() / scores.exp().sum()
                out[i, head] = sum(s * v[j, head] for s, j in zip(shares, seen, strict=True))
        x = x + out.reshape(n, -1) @ w[f"{name}.attention_out.weight"].T
        h = rms(x, f"{name}.ffn_norm.weight") @ w[f"{name}.ffn_in.weight"].T
        gate, value = h[:, : config.ffn_dim], h[:, config.ffn_dim :]
        x = x + (gate * torch.sigmoid(gate) * value) @ w[f"{name}.ffn_out.weight"].T
    return rms(x, "out_norm.weight") @ w["token_out.weight"].T


def surprise(logits: Tensor, token: int) -> Tensor:
    return -(logits[token] - logits.exp().sum().log())


def gradients(model: Transformer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_equal(model: Transformer, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    for one, other in zip(gradients(model, found), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


TEXT_AND_CHATS = pytest.mark.parametrize("sequences", [rows(), chats()], ids=["text", "chats"])


def is_learnt(sequences: Rows, row: int, i: int) -> bool:
    return sequences.response is None or bool(sequences.response[row, i])


@TEXT_AND_CHATS
def test_the_next_token_loss_and_its_gradients_are_the_explicit_sums(sequences: Rows) -> None:
    model = network(causal=True)
    found = NextToken(model, LENGTH)(one_batch(NextToken(model, LENGTH), sequences))["loss"]
    terms = []
    for row, tokens in enumerate(sequences.tokens.tolist()):
        logits = logits_by_hand(model, tokens)
        own = [i for i in range(1, sequences.lengths[row]) if is_learnt(sequences, row, i)]
        terms += [surprise(logits[i - 1], tokens[i]) for i in own]
    assert_equal(model, found, torch.stack(terms).mean())


@TEXT_AND_CHATS
def test_the_masked_diffusion_loss_and_its_gradients_are_the_explicit_sums(sequences: Rows) -> None:
    model, count = network(causal=False), 0
    objective = MaskedDiffusion(model, LENGTH, 1e-3)
    batch = one_batch(objective, sequences)
    found = objective(batch)["loss"]
    mask = model.config.mask_token_id
    total = torch.zeros((), dtype=torch.float64)
    for row, random in enumerate(randomness.generators(0, 0, 0, range(len(sequences)))):
        t = 1e-3 + (1 - 1e-3) * randomness.uniform([random], 1)[0, 0]
        chances = randomness.uniform([random], LENGTH)[0]
        tokens = sequences.tokens[row].tolist()
        own = [i for i in range(sequences.lengths[row]) if is_learnt(sequences, row, i)]
        hidden, count = [i for i in own if chances[i] < t], count + len(own)
        logits = logits_by_hand(model, [mask if i in hidden else x for i, x in enumerate(tokens)])
        total = total + sum(surprise(logits[i], tokens[i]) for i in hidden) / float(t)
    assert_equal(model, found, total / count)


def test_the_mean_masked_diffusion_loss_is_that_of_exact_enumeration() -> None:
    """Two tokens, three places: E_t sums over all masks, with t integrated in closed form."""
    model, length = network(causal=False, vocabulary=2), 3
    tokens = [1, 0, 1]
    exact = 0.0
    for hidden in itertools.product((False, True), repeat=length):
        k = sum(hidden)
        if not k:
            continue
        # integral of t^(k-1) (1 - t)^(n-k) over (0, 1)
        weight = math.gamma(k) * math.gamma(length - k + 1) / math.gamma(length + 1)
        seen = [2 if h else x for h, x in zip(hidden, tokens, strict=True)]
        logits = logits_by_hand(model, seen)
        exact += weight * sum(
            surprise(logits[i], tokens[i]).item() for i in range(length) if hidden[i]
        )
    exact /= length

    count, values = 500, []
    for step in range(40):
        sequences = Rows(np.arange(count), np.tile(tokens, (count, 1)), np.full(count, length))
        objective = MaskedDiffusion(model, length, 1e-6)
        drawn = make_step(objective, sequences, list(range(count)), step, 0, count, 0)
        batch = scaled(drawn.batches[0], drawn.counts, 1)
        with torch.no_grad():
            tensors = {name: torch.as_tensor(value) for name, value in batch.items()}
            values.append(objective(tensors)["loss"].item())
    error = np.std(values) / math.sqrt(len(values))
    assert error < 0.05 * exact
    assert abs(np.mean(values) - exact) < 4 * error


def test_causal_networks_do_not_see_what_follows_and_bidirectional_ones_do() -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    changed = torch.tensor([[1, 2, 3, 5]])
    for causal in (True, False):
        model = network(causal)
        same = torch.allclose(model(ids)[:, :3], model(changed)[:, :3])
        assert same == causal


def test_at_the_papers_size_the_match_is_27_layers_and_within_two_percent() -> None:
    paper = PriorConfig()
    sizes = matched_sizes(paper)
    assert sizes == {"layers": 27, "dim": 2048, "ffn_dim": 8192, "heads": 16, "head_dim": 128}
    config = TransformerConfig(vocab_size=100_278, causal=True, **sizes)
    assert config.core_parameter_count() == pytest.approx(paper.parameter_count(), rel=0.02)
    assert config.parameter_count() - config.core_parameter_count() == 410_738_688


@pytest.mark.parametrize("causal", [True, False])
def test_the_parameters_are_as_many_as_counted(causal: bool) -> None:
    model = network(causal)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameter_count()
