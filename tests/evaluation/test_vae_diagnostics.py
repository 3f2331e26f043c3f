"""VAE diagnostics against the definitions, and the command on a real artifact."""

from __future__ import annotations

import copy
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.errors import InputError
from cola_cli.evaluation.vae_diagnostics import NOISE_LEVELS, diagnose
from cola_cli.report.drawing import drawing
from cola_cli.report.latents import robustness_chart
from tests import golden


def sequences(ids: Tensor, *lengths: int) -> Rows:
    return Rows(np.arange(len(ids)), ids.numpy(), np.array(lengths))


def test_metrics_follow_their_definitions_and_skip_padding() -> None:
    model = golden.detail_model()
    rows = [golden.detail()[f"vae_encode/{index}/ids"][:8] for index in (1, 2)]
    ids = torch.stack(rows)
    found = diagnose(model.vae, [sequences(ids, 8, 4)])
    posteriors = [model.encode(ids[:1]), model.encode(ids[1:])]
    mean = torch.cat([posteriors[0].mean[0], posteriors[1].mean[0, :4]]).double()
    variance = torch.cat([posteriors[0].logvar[0], posteriors[1].logvar[0, :4]]).double().exp()
    assert found.tokens == 12
    expected = math.log(mean.square().mean() / variance.mean())
    assert found.log_snr == pytest.approx(expected, rel=1e-4)
    normal = torch.distributions.Normal(mean, variance.sqrt())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(torch.tensor(found.kl_per_channel), kl.float(), rtol=1e-4, atol=1e-4)
    assert found.active_channels == int((mean.var(0) > 0.01).sum())
    right = [
        (model.decode(p.mean).argmax(-1) == i).sum() for p, i in zip(posteriors, ids, strict=True)
    ]
    right[1] = (model.decode(posteriors[1].mean).argmax(-1)[0, :4] == ids[1, :4]).sum()
    assert found.accuracy == pytest.approx(sum(int(r) for r in right) / 12)
    assert set(found.accuracy_at) == set(NOISE_LEVELS)


def test_the_flow_loss_of_noise_is_what_a_prior_that_knows_the_means_cannot_predict() -> None:
    model = golden.detail_model()
    ids = golden.detail()["vae_encode/1/ids"][None, :8]
    found = diagnose(model.vae, [sequences(ids, 8)])
    assert found.flow_of_noise is not None
    posterior, scale = model.encode(ids), model.vae.config.scaling_factor
    source = torch.Generator().manual_seed(1)
    shape = (20_000, *posterior.mean.shape[1:])
    loc = 1 + 0.5 * math.log(shape[-1] / 16)
    t = (loc + torch.randn(shape[0], 1, 1, generator=source)).sigmoid()
    sigma = scale * (0.5 * posterior.logvar).exp()
    deviation = sigma * torch.randn(shape, generator=source)  # of z_0 from its mean
    noise = torch.randn(shape, generator=source)
    seen = (1 - t) * deviation + t * noise  # z_t less what is known of it
    gain = (t - (1 - t) * sigma**2) / (
        (1 - t) ** 2 * sigma**2 + t**2
    )  # regression of z_1 - z_0 on it
    measured = (noise - deviation - gain * seen).square().mean().item()
    assert found.flow_of_noise == pytest.approx(measured, rel=0.02)
    assert found.flow_of_linear is not None
    assert found.flow_of_noise < found.flow_of_linear


def test_the_plot_is_a_picture_of_every_noise_level() -> None:
    model = golden.detail_model()
    ids = golden.detail()["vae_encode/1/ids"][None]
    found = diagnose(model.vae, [sequences(ids, 8)])
    svg = ElementTree.fromstring(drawing([robustness_chart({"vae": found})]))
    line = next(element for element in svg.iter() if element.tag.endswith("polyline"))
    assert len(line.attrib["points"].split()) == len(NOISE_LEVELS)


def test_nothing_to_look_at_is_bad_input() -> None:
    with pytest.raises(InputError, match="no tokens"):
        diagnose(golden.detail_model().vae, [])


@pytest.mark.parametrize("weight", [0.0, math.nan])
def test_a_posterior_that_says_nothing_is_refused(weight: float) -> None:
    vae = copy.deepcopy(golden.detail_model().vae)
    for name, parameter in vae.named_parameters():
        if name.startswith("posterior_out"):
            parameter.data.fill_(weight)
    ids = golden.detail()["vae_encode/1/ids"][None]
    with pytest.raises(FloatingPointError):
        diagnose(vae, [sequences(ids, 8)])
