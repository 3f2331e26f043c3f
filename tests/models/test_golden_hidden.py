"""What happens inside the networks, against the released code: layers, cached passes, training layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cola_cli.models.attention import block_causal_mask
from cola_cli.training.prior import clean_and_noisy_velocity
from tests import golden

CLOSE = {"atol": 2e-5, "rtol": 1e-5}
LOGITS = {"atol": 5e-5, "rtol": 1e-5}


def outputs_of(blocks: nn.ModuleList, run: Any) -> list[Tensor]:
    """The hidden states that each block gives while `run` runs, (n, D)."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[0])

    handles = [block.register_forward_hook(keep) for block in blocks]
    run()
    for handle in handles:
        handle.remove()
    return kept


def test_hidden_states_of_the_encoder() -> None:
    expected, model = golden.detail(), golden.detail_model()
    ids = expected["vae_encode/0/ids"][None]
    found = outputs_of(model.vae.encoder, lambda: model.encode(ids))
    for layer, hidden in enumerate(found):
        known = expected[f"vae_encode_hidden/sample0/block{layer}"]
        torch.testing.assert_close(hidden, known, **CLOSE)
    assert len(found) == 2


def test_velocities_and_hidden_states_of_prefixes_that_are_clean_themselves() -> None:
    expected, model = golden.detail(), golden.detail_model()
    start = 0
    for length in filter(None, golden.detail_document()["dit"]["prefix_lens"]):
        places = slice(start, start + length)
        prefix = expected["dit/prefix_z0"][places][None]
        start += length
        kept: list[Tensor] = []
        hidden = outputs_of(
            model.prior.blocks,
            lambda prefix=prefix, kept=kept: kept.append(model.velocity(prefix, 0.0)[0]),
        )
        known = expected["dit/prefix_t0/velocity"][places]
        torch.testing.assert_close(kept[0], known, **CLOSE)
        for layer, states in enumerate(hidden):
            known = expected[f"dit/prefix_t0/hidden_block{layer}"][places]
            torch.testing.assert_close(states, known, atol=5e-5, rtol=1e-5)
    assert start == len(expected["dit/prefix_z0"])


@pytest.mark.parametrize("index", [2, 3])
def test_decoding_block_by_block_with_a_cache(index: int) -> None:
    expected, model = golden.detail(), golden.detail_model()
    z, block = expected[f"vae_decode/{index}/z"][None], 4
    cache: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in cache:
            k, v = torch.cat((cache[layer][0], k), 2), torch.cat((cache[layer][1], v), 2)
        cache[layer] = k, v
        mask = block_causal_mask(q.shape[2], k.shape[2], model.vae.config.block_size)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool())

    with torch.inference_mode():
        found = [
            model.vae.decode(
                z[:, start : start + block], torch.arange(start, start + block), attend
            )[0]
            for start in range(0, z.shape[1], block)
        ]
    torch.testing.assert_close(
        torch.cat(found), expected[f"vae_decode_inc/{index}/logits"], **LOGITS
    )


@pytest.mark.parametrize("tag", ["plain", "mixed_bs", "masked"])
def test_noisy_halves_of_the_training_layout(tag: str) -> None:
    """Also with a block size for each sequence, and with known positions of noisy blocks at t = 0."""
    expected, model = golden.detail(), golden.detail_model()
    case = next(c for c in golden.detail_document()["fm"]["cases"] if c["tag"] == tag)
    outputs, start = expected[f"fm/{tag}/out_2L"], 0
    total, count = 0.0, 0.0
    for index, block in enumerate(case["block_sizes"]):
        z0, z1 = (expected[f"fm/{name}/{index}"][None] for name in ("z0", "z1"))
        z_t = expected[f"fm/{tag}/z_noisy/{index}"][None]
        times = expected[f"fm/{tag}/timestep/{index}"] / 1000
        t = times.view(-1, block).amax(-1)[None]
        places = (times == 0).nonzero().flatten()
        with torch.inference_mode():
            found = clean_and_noisy_velocity(
                model.prior, z0, z_t, t, block, places if len(places) else None
            )[0]
        length = z0.shape[1]
        start += 2 * length
        torch.testing.assert_close(found, outputs[start - length : start], **CLOSE)
        weight = expected[f"fm/{tag}/loss_mask/{index}"]
        total += ((found - (z1 - z0)[0]).square().mean(-1) * weight).sum().item()
        count += weight.sum().item()
    assert total / count == pytest.approx(expected[f"fm/{tag}/loss"].item(), abs=1e-4)
    assert start == len(outputs)
