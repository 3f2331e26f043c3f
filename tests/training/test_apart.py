"""Documents packed apart: none influences another, and each is learnt as if it were alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.models.attention import apart
from cola_cli.models.config import TransformerConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.models.transformer import Transformer
from cola_cli.settings.distill import DistillSettings
from cola_cli.training.objectives.baselines import MaskedDiffusion, NextToken
from cola_cli.training.objectives.chained import Chained
from cola_cli.training.objectives.distillation import Distillation
from cola_cli.training.objectives.objective import Batch, Objective
from tests.small_networks import small_networks
from tests.training.conftest import (
    LENGTH,
    PRIOR,
    VAE,
    VOCABULARY,
    batch_of,
    gradients,
    packed,
    prior_objective,
    randomise,
    vae_objective,
)

Make = Callable[[int], Objective]
TIMES = ("t",)  # arrays with a column a block


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def transformer(causal: bool) -> Transformer:
    shape = {"layers": 2, "dim": 16, "ffn_dim": 24, "heads": 2, "head_dim": 6}
    made = Transformer(TransformerConfig(vocab_size=VOCABULARY, causal=causal, **shape))
    randomise(made, 0)
    return made


def whole(objective: Objective) -> Make:
    """An objective that takes sequences of any length."""
    return lambda length: objective


def student(**shape: Any) -> Make:
    """A distillation over sequences of a length, of the same networks whatever that is."""
    made, teacher = (Prior(PRIOR.model_copy(update=shape)) for _ in range(2))
    for seed, prior in enumerate((made, teacher)):
        randomise(prior, seed)
    settings = DistillSettings.model_validate(
        {"passes": 2, "teacher": {"steps": 4, "guidance": 1.0 if shape else 2.0}}
    )
    if shape:
        return lambda length: Chained(made, settings, length, VAE).double()
    teacher.double()
    return lambda length: Distillation(made, teacher, settings, length, VAE).double()


def vae_of_patches() -> Objective:
    """Two tokens a latent, two latents a block."""
    objective = vae_objective(mask={"fraction": 0.4})
    config = objective.vae.config.model_copy(update={"patch_size": 2, "block_size": 2})
    objective.vae = TextVAE(config)
    randomise(objective, 1)
    return objective.double()


HEAD = {"prediction": "tokens"}
EVIDENCE = {"evidence": True, "causal_history": True, "stagger": 1.0}
CASES: dict[str, Callable[[], Make]] = {
    "vae": lambda: whole(vae_objective(mask={"fraction": 0.4})),
    "vae, patches": lambda: whole(vae_of_patches()),
    "prior": lambda: whole(prior_objective(data={"partly_clean": 0.5, "noisy_copies": 1})),
    "prior, causal history": lambda: whole(prior_objective(model={"causal_history": True})),
    "prior, small blocks": lambda: whole(prior_objective(data={"block_sizes": [2]})),
    "head": lambda: whole(
        prior_objective(model=HEAD, loss={"next_token": 0.7, "decoder": 0.3})
    ),
    "head, causal history": lambda: whole(
        prior_objective(model=HEAD | {"causal_history": True}, loss={"next_token": 0.7})
    ),
    "evidence, causal history": lambda: whole(
        prior_objective(model=HEAD | EVIDENCE, loss={"next_token": 0.7}, data={"noisy_copies": 1})
    ),
    "joint": lambda: whole(prior_objective(mode="joint", mask={"fraction": 0.4})),
    "ar": lambda: whole(NextToken(transformer(True), LENGTH).double()),
    "llada": lambda: whole(MaskedDiffusion(transformer(False), LENGTH, 1e-3).double()),
    "distill": lambda: student(),
    "chained": lambda: student(**HEAD, vocab_size=VOCABULARY, chain=8, passes=2),
}  # fmt: skip


def pieces_of(data: Rows) -> list[tuple[int, int, int]]:
    """Row, start and stop of every piece with the padding behind it."""
    assert data.pieces is not None
    found = []
    for row, numbers in enumerate(np.abs(data.pieces)):
        starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1), LENGTH]
        found += [(row, start, stop) for start, stop in itertools.pairwise(starts)]
    return found


def alone(batch: Batch, row: int, start: int, stop: int) -> Batch:
    """What the batch holds of one piece, as a batch of a sequence that is no longer than it."""
    found: Batch = {}
    for name, value in batch.items():
        if name in ("pieces", "clean_places"):
            continue
        if name == "window":  # of the noisy copy: all positions
            found[name] = range((stop - start) * len(value) // LENGTH)
        elif not isinstance(value, Tensor) or not value.ndim:
            found[name] = value
        elif name in ("target_places", "masked_places"):
            mine = (value // LENGTH == row) & (start <= value % LENGTH) & (value % LENGTH < stop)
            found[name] = value[mine] - row * LENGTH - start
        elif value.ndim == 1:  # of these places
            places = batch["masked_places" if "masked_places" in batch else "target_places"]
            mine = (places // LENGTH == row) & (start <= places % LENGTH) & (places % LENGTH < stop)
            found[name] = value[mine]
        elif name in TIMES:
            size = batch["block_size"]
            found[name] = value[row : row + 1, start // size : stop // size]
        elif name.startswith("next_"):
            found[name] = value[row : row + 1, start : start + foretelling(start, stop, batch)]
        elif name == "target_weight" and value.ndim == 2:  # of the next tokens
            found[name] = value[row : row + 1, start : stop - 1]
        else:
            scale = LENGTH // value.shape[1]  # tokens a latent
            found[name] = value[row : row + 1, start // scale : stop // scale]
    if "clean" in found:
        found["clean_places"] = found["clean"].flatten().nonzero().flatten()
    return found


def foretelling(start: int, stop: int, batch: Batch) -> int:
    """Clean latents of a piece when it is alone: all but its last block."""
    return (stop - start - 1) // batch["block_size"] * batch["block_size"]


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("case", CASES)
def test_the_losses_of_every_position_are_those_of_its_document_alone(case: str) -> None:
    make, data = CASES[case](), packed()
    objective = make(LENGTH)
    batch = batch_of(objective, data)
    source = torch.Generator().manual_seed(0)
    for name, value in batch.items():
        if name.endswith("_weight"):  # any: so that sums are equal only if every term is
            batch[name] = value * torch.rand(value.shape, generator=source)
    if "next_weight" in batch:  # the last block of one that others follow foretells, too
        ahead = 1 if "causal" in case else batch["block_size"]
        for row, start, stop in pieces_of(data):
            assert not batch["next_weight"][row, stop - ahead : stop].any()
            batch["next_weight"][row, start + foretelling(start, stop, batch) : stop] = 0
    ours = objective(batch)
    theirs: dict[str, Tensor] = {}
    for row, start, stop in pieces_of(data):
        for name, term in make(stop - start)(alone(batch, row, start, stop)).items():
            theirs[name] = theirs.get(name, torch.zeros(())) + term
    assert ours["loss"] != 0
    for name, term in theirs.items():
        torch.testing.assert_close(ours[name], term, rtol=1e-8, atol=1e-9, msg=name)
    found, expected = (gradients(objective, terms["loss"]) for terms in (ours, theirs))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9, msg=name)


def outputs(ids: Tensor, z: Tensor, pieces: Tensor | None) -> dict[str, Tensor]:
    """Latents, logits and velocities of sequences (B, N), z (B, N, d) clean and noisy latents."""
    vae, prior = small_networks(5, VOCABULARY)
    posterior = vae.encode(ids, None, apart(pieces, 1))
    view = prior.teacher_forced(z[0], prior.config.block_size, pieces=pieces)
    t = torch.full((1, z.shape[2] // prior.config.block_size), 0.6)
    return {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "decoded": vae.decode(z[0], None, apart(pieces, 1)),
        "velocity": prior.velocity(z[1], t, view),
        "next": transformer(True)(ids, None, apart(pieces, 1)),
        "masked": transformer(False)(ids, None, apart(pieces, ids.shape[1])),
    }


@torch.no_grad()
def test_what_one_document_says_changes_no_bit_of_another() -> None:
    length, begin, end = 192, 72, 132  # of the one that changes: across chunks of attention
    source = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (2, length), generator=source)
    z = torch.randn(2, 2, length, 8, generator=source)
    places = torch.arange(length)
    pieces = (1 + (places >= begin).long() + (places >= end).long()).repeat(2, 1)
    others = (pieces[0] != 2).nonzero().flatten()
    changed, moved = ids.clone(), z.clone()
    changed[:, begin:end] = (ids[:, begin:end] + 1) % VOCABULARY
    moved[:, :, begin:end] += 1
    before, after = outputs(ids, z, pieces), outputs(changed, moved, pieces)
    for name, value in before.items():
        assert torch.equal(value[:, others], after[name][:, others]), name
        assert not torch.equal(value[:, begin:end], after[name][:, begin:end]), name
    for name, value in outputs(ids, z, None).items():  # else what comes later does see it
        later = outputs(changed, moved, None)[name]
        assert not torch.allclose(value[:, end:], later[:, end:]), name
