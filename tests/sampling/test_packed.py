"""Packed layers compute what the layers they are made of compute, and share what they do not pack."""

from __future__ import annotations

import pytest
import torch

from cola_cli.sampling.fast.fused_prior import can_pack
from cola_cli.sampling.fast.packed import PackedLinear, packed
from tests.sampling.test_parameterisations import networks


def test_a_packed_decoder_decodes_as_before_and_the_vae_stays_as_it_is() -> None:
    vae, _ = networks("latent")
    if not can_pack(vae.token_out.weight):
        pytest.skip("no packed products here")
    fast = packed(vae, "latent_in", "decoder", "patch_out", "token_out")
    assert isinstance(fast.token_out, PackedLinear)
    assert isinstance(vae.token_out, torch.nn.Linear)
    assert fast.encoder is vae.encoder
    assert fast.decoder[0].q_norm.weight is vae.decoder[0].q_norm.weight
    z = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(fast.decode(z), vae.decode(z), atol=1e-5, rtol=1e-5)


def test_half_precision_is_left_alone() -> None:
    vae, _ = networks("latent")
    half = torch.nn.Sequential(torch.nn.Linear(4, 4)).to(torch.bfloat16)
    assert packed(half, "0") is half
    assert packed(vae.double(), "decoder") is vae
    vae.float()
