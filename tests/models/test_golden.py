"""The networks against tensors computed with the released code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.flow.path import interpolate
from cola_cli.interop.released import prior_names, prior_to_released
from cola_cli.models.attention import BlockCausal, block_causal_mask, clean_and_noisy_mask
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior, timestep_sinusoid
from cola_cli.models.rotary import rotation
from cola_cli.models.text_vae import TextVAE
from cola_cli.training.prior import clean_and_noisy_velocity
from tests import golden

# float32; the released code itself agrees with itself to about 3e-6 in other orders of summation
CLOSE = {"atol": 2e-5, "rtol": 1e-5}
LOGITS = {"atol": 5e-5, "rtol": 1e-5}


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


@pytest.mark.parametrize("index", range(3))
def test_posterior(index: int) -> None:
    expected = golden.tensors()
    posterior = golden.model().encode(expected[f"encode.{index}.ids"][None])
    close(posterior.mean[0], expected[f"encode.{index}.mean"])
    close(posterior.logvar[0], expected[f"encode.{index}.logvar"])


@pytest.mark.parametrize("index", range(5))
def test_posterior_and_logits_of_all_lengths(index: int) -> None:
    expected, model = golden.detail(), golden.detail_model()
    posterior = model.encode(expected[f"vae_encode/{index}/ids"][None])
    close(posterior.mean[0], expected[f"vae_encode/{index}/mean"])
    close(posterior.logvar[0], expected[f"vae_encode/{index}/logvar"])
    logits = model.decode(expected[f"vae_decode/{index}/z"][None])
    close(logits[0], expected[f"vae_decode/{index}/logits"], LOGITS)


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


def test_decoder_logits() -> None:
    expected = golden.tensors()
    close(golden.model().decode(expected["decode.z"][None])[0], expected["decode.logits"], LOGITS)


def test_velocities() -> None:
    expected, model = golden.tensors(), golden.model()
    prefix, block = expected["dit.prefix"][None], expected["dit.block"][None]
    close(model.velocity(prefix, 0.0)[0], expected["dit.velocity.prefix_t0"])
    seen = 0
    for name, velocity in expected.items():
        if name.startswith(("dit.velocity.cond_t", "dit.velocity.uncond_t")):
            t = float(name.rpartition("_t")[2]) / 1000
            history = prefix if ".cond_" in name else None
            close(model.velocity(block, t, history)[0], velocity)
            seen += 1
    assert seen >= 4
    mixed = model.velocity(block, expected["dit.mixed_t"][None] / 1000)
    close(mixed[0], expected["dit.velocity.mixed_t"])


@pytest.mark.parametrize("name", ["t1000", "t500", "t62.5", "t_mixed"])
def test_velocities_after_prefixes_of_all_lengths(name: str) -> None:
    expected, model = golden.detail(), golden.detail_model()
    lengths = golden.detail_document()["dit"]["prefix_lens"]
    start = 0
    for row, length in enumerate(lengths):
        places = slice(4 * row, 4 * row + 4)
        z = expected["dit/z_t"][places][None]
        if name == "t_mixed":
            t: float | Tensor = expected["dit/block/t_mixed/timestep"][places][None] / 1000
        else:
            t = float(name[1:]) / 1000
        history = expected["dit/prefix_z0"][start : start + length][None]
        start += length
        close(model.velocity(z, t, history)[0], expected[f"dit/block/{name}/cond"][places])
        close(model.velocity(z, t)[0], expected[f"dit/block/{name}/uncond"][places])


def test_several_blocks_at_once_are_block_causal_among_themselves() -> None:
    expected, model = golden.tensors(), golden.model()
    z = expected["dit.prefix"][None]
    history = expected["dit.prefix"].flip(0)[None, :4]
    together = model.velocity(z, torch.tensor([[0.3] * 4 + [0.6] * 4 + [0.9] * 4]), history)
    first = model.velocity(z[:, :4], 0.3, history)
    close(together[:, :4], first)
    second = model.velocity(z[:, :8], torch.tensor([[0.3] * 4 + [0.6] * 4]), history)
    close(together[:, :8], second)


def test_timestep_sinusoid_and_embedding() -> None:
    expected, prior = golden.detail(), golden.detail_model().prior
    t = expected["dit/t_emb/timesteps"] / 1000
    close(timestep_sinusoid(t), expected["dit/t_emb/sinusoid"], {"atol": 2e-4, "rtol": 0.0})
    close(prior.embed_timesteps(t), expected["dit/t_emb/emb"], {"atol": 2e-4, "rtol": 0.0})


def test_rotary_angles() -> None:
    expected, prior = golden.detail()["dit/rope_freqs_0_11"], golden.detail_model().prior
    table = rotation(torch.arange(12), prior.frequencies)
    close(table.cos, expected[:, ::2].cos())
    close(table.sin, expected[:, ::2].sin())


def _blocks(sizes: list[Tensor]) -> Tensor:
    return torch.block_diag(*[size.float() for size in sizes]).to(torch.uint8)


@pytest.mark.parametrize("index", range(8))
def test_block_causal_masks_exactly(index: int) -> None:
    case = golden.detail_document()["mask_na"][index]
    pairs = zip(case["q_lens"], case["k_lens"], strict=True)
    ours = _blocks([block_causal_mask(q, k, case["block_size"]) for q, k in pairs if k])
    assert torch.equal(ours, golden.detail()[f"mask_na/{index}"])


def test_block_causal_masks_of_the_first_fixture_exactly() -> None:
    expected = golden.tensors()
    assert torch.equal(block_causal_mask(16, 16, 4).long(), expected["mask.0"].long())
    assert torch.equal(block_causal_mask(4, 16, 4).long(), expected["mask.1"].long())


def test_the_noisy_rows_of_the_mask_alone() -> None:
    case, expected = golden.detail_document()["mask_2l"][4], golden.detail()["mask_2l/4"]
    row, column = 0, 0
    for length, block in zip(case["seq_lens"], case["block_sizes"], strict=True):
        own = expected[row : row + length, column : column + 2 * length]
        kept = torch.cat((torch.arange(length - block), torch.arange(length, 2 * length)))
        assert torch.equal(clean_and_noisy_mask(length, block)[-length:], own[:, kept].bool())
        row, column = row + length, column + 2 * length


@pytest.mark.parametrize("index", [0, 1, 2])
def test_clean_and_noisy_masks_exactly_but_for_the_last_clean_block(index: int) -> None:
    """The released layout keeps the clean copy's last block, which nobody needs as a condition."""
    case = golden.detail_document()["mask_2l"][index]
    expected = golden.detail()[f"mask_2l/{index}"]
    start = 0
    for length, block in zip(case["seq_lens"], case["block_sizes"], strict=True):
        own = expected[start : start + 2 * length, start : start + 2 * length]
        kept = torch.cat((torch.arange(length - block), torch.arange(length, 2 * length)))
        assert torch.equal(clean_and_noisy_mask(length, block), own[kept][:, kept].bool())
        start += 2 * length


@pytest.mark.parametrize("index", [0, 1])
def test_training_velocities_through_the_clean_and_noisy_layout(index: int) -> None:
    expected, prior = golden.tensors(), golden.model().prior
    z0, z1 = (expected[f"train.{index}.{name}"][None] for name in ("z0", "z1"))
    t = torch.full((1, z0.shape[1] // 4), golden.document()["train_t"][index])
    z_t = interpolate(z0, z1, torch.tensor(golden.document()["train_t"][index]))
    close(clean_and_noisy_velocity(prior, z0, z_t, t, 4)[0], expected[f"train.{index}.velocity"])


def test_training_loss() -> None:
    expected, prior = golden.tensors(), golden.model().prior
    errors = []
    for index in (0, 1):
        z0, z1 = (expected[f"train.{index}.{name}"][None] for name in ("z0", "z1"))
        time = golden.document()["train_t"][index]
        t = torch.full((1, z0.shape[1] // 4), time)
        v = clean_and_noisy_velocity(prior, z0, interpolate(z0, z1, torch.tensor(time)), t, 4)
        errors.append((v - (z1 - z0)).square().flatten())
    loss = torch.cat(errors).mean().item()
    assert loss == pytest.approx(golden.document()["train_loss"], abs=1e-4)


def test_training_loss_and_gradients_of_three_sequences() -> None:
    expected, model = golden.detail(), golden.detail_model()
    prior = model.prior.requires_grad_(True)
    total, count = torch.zeros(()), 0
    for index, time in enumerate(golden.detail_document()["fm"]["t"]):
        z0, z1 = (expected[f"fm/{name}/{index}"][None] for name in ("z0", "z1"))
        z_t = interpolate(z0, z1, torch.tensor(time))
        close(z_t[0], expected[f"fm/plain/z_noisy/{index}"])
        t = torch.full((1, z0.shape[1] // 4), time)
        v = clean_and_noisy_velocity(prior, z0, z_t, t, 4)
        total = total + (v - (z1 - z0)).square().mean(-1).sum()
        count += z0.shape[1]
    loss = total / count
    assert loss.item() == pytest.approx(expected["fm/plain/loss"].item(), abs=1e-4)
    loss.backward()
    released = prior_to_released_gradients(prior)
    case = next(c for c in golden.detail_document()["fm"]["cases"] if c["tag"] == "plain")
    for name, norm in case["grad_norms"].items():
        assert released[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-5), name
    for name, gradient in expected.items():
        if name.startswith("fm/plain/grad/"):
            close(
                released[name.removeprefix("fm/plain/grad/")],
                gradient,
                {"atol": 1e-4, "rtol": 1e-3},
            )


def prior_to_released_gradients(prior: Prior) -> dict[str, Tensor]:
    """The gradients under the released names, by the map that exports weights."""
    assert dict(prior_names(prior.config))
    with torch.no_grad():
        for parameter in prior.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    return prior_to_released(prior)


def test_bfloat16_stays_near_float32() -> None:
    exact, rounded = golden.model(), golden.model(torch.bfloat16)
    expected = golden.tensors()
    z, block = expected["decode.z"][None], expected["dit.block"][None]
    prefix = expected["dit.prefix"][None]
    assert relative_error(rounded.decode(z), exact.decode(z)) < 2e-2
    for t in (1.0, 0.5, 0.1):
        ours = rounded.velocity(block, t, prefix)
        assert relative_error(ours, exact.velocity(block, t, prefix)) < 2e-2
    ids = expected["encode.2.ids"][None]
    assert relative_error(rounded.encode(ids).mean, exact.encode(ids).mean) < 2e-2


def test_attention_over_one_block_needs_no_mask() -> None:
    q, k, v = torch.randn(3, 1, 2, 4, 8).unbind(0)
    close(BlockCausal(4, 4)(0, q, k, v), F.scaled_dot_product_attention(q, k, v))
