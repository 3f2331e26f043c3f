"""The networks against tensors computed with the released code."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.api import Cola, load
from cola_cli.flow.path import interpolate
from cola_cli.models.attention import BlockCausal
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from tests import golden

# float32; the released code itself agrees with itself to about 3e-6 in other orders of summation
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def close(actual: Tensor, expected: Tensor, tolerance: dict[str, float] = CLOSE) -> None:
    torch.testing.assert_close(actual, expected, **tolerance)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.float() - expected).norm() / expected.norm()).item()


def test_parameter_counts_are_the_papers() -> None:
    vae_config = TextVAEConfig(vocab_size=100_278)
    with torch.device("meta"):
        vae, prior = TextVAE(vae_config), Prior(PriorConfig())
    assert sum(p.numel() for p in vae.parameters()) == vae_config.parameter_count() == 501_871_574
    counted = sum(p.numel() for p in prior.parameters())
    assert counted == PriorConfig().parameter_count() == 1_829_875_728


@pytest.mark.parametrize("bias", [False, True])
def test_the_closed_form_counts_every_variant(bias: bool) -> None:
    vae_config = TextVAEConfig(
        vocab_size=50, encoder_layers=2, decoder_layers=1, dim=30, ffn_dim=44, latent_dim=5,
        patch_size=2, heads=3, bias=not bias, qk_bias=bias,
    )  # fmt: skip
    prior_config = PriorConfig(
        latent_dim=5, dim=20, heads=3, head_dim=8, layers=2, rope_dim=6, qk_bias=bias
    )
    for network in (TextVAE(vae_config), Prior(prior_config)):
        counted = sum(p.numel() for p in network.parameters())
        assert counted == network.config.parameter_count()


def test_reconstruction_loss_through_the_posterior_mean() -> None:
    expected, model = golden.detail(), golden.detail_model()
    total, tokens = 0.0, 0
    for index in range(5):
        ids = expected[f"vae_encode/{index}/ids"]
        logits = model.decode(model.encode(ids[None]).mean)[0]
        total += F.cross_entropy(logits, ids, reduction="sum").item()
        tokens += len(ids)
    recorded = golden.detail_document()["vae_recon_ce"]
    assert tokens == recorded["tokens"]
    assert total == pytest.approx(recorded["sum"], rel=1e-5)


def test_several_blocks_at_once_are_block_causal_among_themselves() -> None:
    expected, model = golden.tensors(), golden.model()
    z = expected["dit.prefix"][None]
    history = expected["dit.prefix"].flip(0)[None, :4]
    together = model.velocity(z, torch.tensor([[0.3] * 4 + [0.6] * 4 + [0.9] * 4]), history)
    first = model.velocity(z[:, :4], 0.3, history)
    close(together[:, :4], first)
    second = model.velocity(z[:, :8], torch.tensor([[0.3] * 4 + [0.6] * 4]), history)
    close(together[:, :8], second)


def test_training_loss() -> None:
    expected, prior = golden.tensors(), golden.model().prior
    errors = []
    for index in (0, 1):
        z0, z1 = (expected[f"train.{index}.{name}"][None] for name in ("z0", "z1"))
        time = golden.document()["train_t"][index]
        t = torch.full((1, z0.shape[1] // 4), time)
        v = golden.clean_and_noisy_velocity(
            prior, z0, interpolate(z0, z1, torch.tensor(time)), t, 4
        )
        errors.append((v - (z1 - z0)).square().flatten())
    loss = torch.cat(errors).mean().item()
    assert loss == pytest.approx(golden.document()["train_loss"], abs=1e-4)


def networks_outputs(model: Cola, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Posterior, logits and velocities of everything that a golden file gives to compute them from."""
    found = {}
    for key, given in held.items():
        if re.search("encode.*ids", key):
            found |= {f"{key} {n}": x for n, x in model.encode(given[None])._asdict().items()}
        elif re.search("decode.*z$", key):
            found[key] = model.decode(given[None])
        elif key in ("dit.block", "dit/z_t"):
            block = given[None, :4]
            prefix = held["dit.prefix" if key == "dit.block" else "dit/prefix_z0"][None, :12]
            mixed = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
            for t in (0.0, 0.0625, 0.25, 0.5, 0.75, 0.9375, 1.0, mixed):
                found[f"{key} {t} after {prefix.shape}"] = model.velocity(block, t, prefix)
                found[f"{key} {t}"] = model.velocity(block, t)
            found[f"{key} prefix"] = model.velocity(prefix, 0.0)
    return found


@pytest.mark.parametrize("file", ["golden", "detail"])
def test_bfloat16_stays_near_float32(file: str) -> None:
    folder = golden.HERE if file == "golden" else golden.HERE / "detail"
    held = golden.tensors() if file == "golden" else golden.detail()
    exact = networks_outputs(load(folder), held)
    rounded = networks_outputs(load(folder, dtype=torch.bfloat16), held)
    assert len(exact) > 20
    for key, expected in exact.items():
        assert relative_error(rounded[key], expected) < 2e-2, key


def test_attention_over_one_block_needs_no_mask() -> None:
    q, k, v = torch.randn(3, 1, 2, 4, 8).unbind(0)
    close(BlockCausal(4, 4)(0, q, k, v), F.scaled_dot_product_attention(q, k, v))
