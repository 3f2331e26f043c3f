"""Densities against closed forms: a linear velocity field has an exact Gaussian one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cola_cli.api import Cola
from cola_cli.evaluation.likelihood import (
    likelihood,
    prior_log_density,
    response_score,
    token_bound,
)
from cola_cli.flow.gaussian import normal_log_density, standard_normal_log_density
from cola_cli.flow.likelihood import (
    elbo,
    iwae,
    log_density,
    velocity_and_divergence,
)
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from tests import golden


def test_a_constant_linear_field_has_the_density_of_its_matrix_exponential() -> None:
    torch.manual_seed(0)
    matrix = 0.5 * torch.randn(6, 6, dtype=torch.float64)
    z0 = torch.randn(4, 2, 3, dtype=torch.float64)

    def velocity(z: Tensor, t: float) -> Tensor:
        return (z.flatten(1) @ matrix.T).view_as(z)

    found = log_density(velocity, z0, 200, "exact").sum(1)
    z1 = (z0.flatten(1) @ torch.matrix_exp(matrix).T).view_as(z0)
    expected = standard_normal_log_density(z1).sum(1) + matrix.trace()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
def test_the_optimal_field_of_gaussian_latents_gives_their_density(deviation: float) -> None:
    """E[z1 - z0 | z_t] for z0 ~ N(0, s^2 I) is (t - (1 - t) s^2) / ((1 - t)^2 s^2 + t^2) z_t."""
    z0 = deviation * torch.randn(3, 5, 4, dtype=torch.float64)

    def velocity(z: Tensor, t: float) -> Tensor:
        variance = (1 - t) ** 2 * deviation**2 + t**2
        return (t - (1 - t) * deviation**2) / variance * z

    found = log_density(velocity, z0, 400, "exact")
    logvar = torch.full_like(z0, 2 * math.log(deviation))
    expected = normal_log_density(z0, torch.zeros_like(z0), logvar)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)


def test_hutchinsons_estimator_has_the_exact_divergence_as_its_mean() -> None:
    model = golden.detail_model()
    z = golden.detail()["dit/z_t"][:4][None]

    def velocity(z: Tensor, t: float) -> Tensor:
        prior = model.prior
        modulation = prior.modulation(torch.tensor([t]))
        from cola_cli.models.attention import BlockCausal

        return prior(z, modulation, prior.view(torch.arange(4), BlockCausal(4, 4)))

    exact = velocity_and_divergence(velocity, z, 0.5, "exact", None)[1].sum()
    probes = torch.randn(4000, 4, 8, generator=torch.Generator().manual_seed(0))
    many = velocity_and_divergence(velocity, z.expand(4000, -1, -1), 0.5, "hutchinson", probes)[1]
    estimates = many.sum(1)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - exact) < 4 * error
    assert error < 0.2 * abs(exact) + 1


def test_all_blocks_at_once_give_what_each_block_gives_alone() -> None:
    model = golden.detail_model()
    z0 = golden.detail()["fm/z0/1"][None]  # three blocks of four
    together = prior_log_density(model, z0, 6, "exact", torch.Generator())
    for block in range(3):
        history = z0[:, : 4 * block]

        def velocity(z: Tensor, t: float, history: Tensor = history) -> Tensor:
            from cola_cli.models.attention import BlockCausal

            prior, past = model.prior, history.shape[1]
            times = torch.tensor([0.0] * past + [t] * 4)
            view = prior.view(torch.arange(past + 4), BlockCausal(past + 4, 4))
            joined = torch.cat((history, z), 1)
            return prior(joined, prior.modulation(times), view)[:, past:]

        places = slice(4 * block, 4 * block + 4)
        alone = log_density(velocity, z0[:, places], 6, "exact")
        torch.testing.assert_close(together[:, places], alone, atol=1e-3, rtol=1e-4)


def test_the_bounds_of_known_weights() -> None:
    weights = torch.tensor([0.1, 0.2, 0.6]).log()
    assert elbo(weights).item() == pytest.approx(weights.mean().item())
    assert iwae(weights).item() == pytest.approx(math.log(0.3), abs=1e-6)
    assert iwae(weights[:1]).item() == pytest.approx(elbo(weights[:1]).item())


def test_terms_of_a_text_add_up_and_more_draws_tighten_the_bound() -> None:
    model = golden.detail_model()
    ids = golden.detail_document()["gen"]["prompts"][2]
    terms = likelihood(model, ids, draws=8, steps=4, divergence="exact")
    assert terms.posterior.shape == terms.prior.shape == terms.decoder.shape == (8, len(ids))
    weights = (terms.decoder + terms.prior - terms.posterior).sum(1)
    assert terms.elbo == pytest.approx(weights.mean().item(), rel=1e-5)
    assert terms.iwae is not None
    assert terms.iwae > terms.elbo
    row = terms.table()[3]
    exponent = row["posterior"] - row["prior"] - row["decoder"]
    assert row["perplexity"] == pytest.approx(math.exp(min(exponent, 699)), rel=1e-6)
    # the decoder's term, from the logits of the same draw
    generator = torch.Generator().manual_seed(0)
    posterior = model.encode(torch.tensor([ids]))
    noise = torch.randn((8, *posterior.mean.shape[1:]), generator=generator)
    z = posterior.mean + (0.5 * posterior.logvar).exp() * noise
    logits = model.decode(z).log_softmax(-1)
    assert terms.decoder[5, 2].item() == pytest.approx(logits[5, 2, ids[2]].item(), abs=1e-4)
    normal = torch.distributions.Normal(posterior.mean[0, 2], (0.5 * posterior.logvar[0, 2]).exp())
    assert terms.posterior[5, 2].item() == pytest.approx(
        normal.log_prob(z[5, 2]).sum().item(), rel=1e-4
    )


def test_a_response_scores_as_the_difference_of_two_texts() -> None:
    model = golden.detail_model()
    ids = golden.detail_document()["gen"]["prompts"][2]
    found = response_score(model, ids[:8], ids[8:], steps=3)
    both, alone = (likelihood(model, part, steps=3).elbo for part in (ids, ids[:8]))
    assert found["elbo"] == pytest.approx(both - alone)


def test_a_prior_that_moves_nothing_gives_the_bound_of_standard_normal_latents() -> None:
    """An untrained prior has velocity 0; with patches and scaling the terms are those of the definitions."""
    torch.manual_seed(0)
    config = TextVAEConfig(
        vocab_size=20, encoder_layers=1, decoder_layers=1, dim=16, ffn_dim=24, latent_dim=4,
        patch_size=2, heads=2, scaling_factor=1.7, shifting_factor=0.3,
    )  # fmt: skip
    vae = TextVAE(config)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prior = Prior(PriorConfig(latent_dim=4, dim=8, heads=1, head_dim=8, rope_dim=8, block_size=4))
    model, ids = Cola(vae, prior, None), [3, 1, 4, 1, 5, 9, 2, 6]
    terms = likelihood(model, ids, draws=3, steps=2)
    posterior = model.encode(torch.tensor([ids]))
    generator = torch.Generator().manual_seed(0)
    deviation = (0.5 * posterior.logvar).exp()
    sample = posterior.mean + deviation * torch.randn((3, 4, 4), generator=generator)
    z = (sample - 0.3) * 1.7
    # the posterior on the prior's scale is a normal distribution too
    scaled = torch.distributions.Normal((posterior.mean - 0.3) * 1.7, deviation * 1.7)
    torch.testing.assert_close(terms.posterior, scaled.log_prob(z).sum(-1), atol=1e-3, rtol=1e-4)
    standard = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(terms.prior, standard.log_prob(z).sum(-1), atol=1e-4, rtol=1e-4)
    chances = model.decode(z).log_softmax(-1)
    each = chances.gather(-1, torch.tensor(ids).expand(3, -1)[..., None])[..., 0]
    decoder = each[:, 0::2] + each[:, 1::2]
    torch.testing.assert_close(terms.decoder, decoder, atol=1e-4, rtol=1e-4)


def _tiny(latent_dim: int, block_size: int, vocab: int = 5) -> Cola:
    """A model with a prior that moves, small enough to integrate over all of its latents."""
    torch.manual_seed(3)
    vae = TextVAE(
        TextVAEConfig(
            vocab_size=vocab, encoder_layers=1, decoder_layers=1, dim=8, ffn_dim=12,
            latent_dim=latent_dim, patch_size=1, heads=1,
        )
    )  # fmt: skip
    prior = Prior(
        PriorConfig(
            latent_dim=latent_dim, dim=8, heads=1, head_dim=8, rope_dim=8, layers=1,
            block_size=block_size,
        )
    )  # fmt: skip
    for network in (vae, prior):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return Cola(vae, prior, None)


def test_bounds_lie_below_the_likelihood_that_integration_gives() -> None:
    """Texts of one token with a latent of two channels: p(x) is an integral over the plane."""
    model = _tiny(2, 1)
    side = torch.linspace(-7, 7, 141)
    plane = torch.cartesian_prod(side, side).unsqueeze(1)  # (points, 1, 2)
    density = prior_log_density(model, plane, 24, "exact", torch.Generator())[:, 0].double().exp()
    area = (side[1] - side[0]).item() ** 2
    assert (density.sum() * area).item() == pytest.approx(1, abs=0.01)
    chances = model.decode(plane)[:, 0].double().softmax(-1)  # (points, vocab)
    truth = (density @ chances * area).log().tolist()
    for token, wanted in enumerate(truth):
        found = [
            likelihood(model, [token], draws=400, steps=24, divergence="exact", seed=seed)
            for seed in range(0, 8, 2)
        ]
        elbo_of, iwae_of = ([getattr(f, name) for f in found] for name in ("elbo", "iwae"))
        assert sum(elbo_of) / 4 < sum(iwae_of) / 4 < wanted + 0.03
        assert sum(iwae_of) / 4 == pytest.approx(wanted, abs=0.1)


def test_noise_of_the_divergence_never_tightens_a_bound() -> None:
    """exp of a noisy log-weight is too large on average: by default no IWAE, and the ELBO is right."""
    model = _tiny(4, 4)
    ids = [1, 4, 2, 0, 3, 3, 1, 2]
    exact = likelihood(model, ids, draws=64, steps=8, divergence="exact")
    noisy = likelihood(model, ids, draws=64, steps=8)
    assert noisy.iwae is None
    assert response_score(model, ids[:4], ids[4:], steps=4)["iwae"] is None
    assert exact.iwae is not None
    assert exact.elbo < exact.iwae
    # what the log of the mean of the noisy weights would claim
    assert iwae(noisy.log_weights) > exact.iwae + 0.5
    # the draws are the same, so that only the probes differ
    differences = noisy.log_weights - exact.log_weights
    error = (differences.std() / len(differences) ** 0.5).item()
    assert differences.std() > 0.3, "otherwise this test says nothing"
    assert abs(noisy.elbo - exact.elbo) < 4 * error


def test_draws_in_pieces_are_the_draws_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _tiny(4, 4)
    ids = [1, 4, 2, 0]
    whole = likelihood(model, ids, draws=6, steps=2)
    monkeypatch.setattr("cola_cli.evaluation.likelihood.POSITIONS", 8)
    pieces = likelihood(model, ids, draws=6, steps=2)
    torch.testing.assert_close(pieces.log_weights, whole.log_weights)


class PerfectPrior(Prior):
    """A head that knows the joint probabilities of the two tokens of a block: Bayes' rule, written out."""

    def __init__(self, joint: Tensor, codes: Tensor, stagger: float, evidence: bool) -> None:
        vocabulary, channels = codes.shape
        super().__init__(
            PriorConfig(
                latent_dim=channels, dim=8, heads=1, head_dim=8, rope_dim=4, layers=1, block_size=2,
                prediction="tokens", vocab_size=vocabulary, stagger=stagger, evidence=evidence,
                causal_history=evidence,
            )
        )  # fmt: skip
        self.joint = joint
        self.codes, self.code_variance = codes, torch.tensor([0.1, 0.2, 0.3, 0.4])

    def level_modulation(self, times: Tensor, levels: Tensor) -> Any:
        self.times = times[levels].view(-1, 2)
        return super().level_modulation(times, levels)

    def forward(self, z: Tensor, *_: Any) -> Tensor:
        z = z.view(-1, 2, z.shape[-1])  # (blocks, 2, d)
        t = self.times[..., None, None]
        variance = (1 - t) ** 2 * self.code_variance + t**2
        far = (z[:, :, None] - (1 - t) * self.codes).square() / (2 * variance)
        near = -far.sum(-1)  # log p(z_i | token), (blocks, 2, vocabulary)
        both = self.joint.log() + near[:, 0, :, None] + near[:, 1, None, :]
        marginals = torch.stack((both.logsumexp(2), both.logsumexp(1)), 1)
        if self.config.evidence:  # the other latent's alone: its own is added to the output
            marginals = marginals - near
        return marginals.view(len(z), 2, -1)


@pytest.mark.parametrize(("stagger", "evidence"), [(1.0, False), (3.0, False), (1.0, True)])
def test_the_bound_of_a_perfect_token_head_is_the_probability_of_the_tokens(
    stagger: float, evidence: bool
) -> None:
    """Summed over all pairs of a tiny vocabulary the probabilities are enumerated, so known."""
    torch.manual_seed(0)
    joint = torch.rand(3, 3) ** 3
    joint = joint / joint.sum()
    prior = PerfectPrior(joint, torch.randn(3, 4), stagger, evidence)
    source = torch.Generator().manual_seed(2)
    total = 0.0
    for first in range(3):
        for second in range(3):
            tokens = torch.tensor([first, second])
            diffusion, decoded = token_bound(prior, tokens, prior.codes[tokens], 500, 400, source)
            bound = (diffusion + decoded).sum(1)
            error = (bound.std() / len(bound) ** 0.5).item()
            assert bound.mean().item() == pytest.approx(
                joint[first, second].log().item(), abs=4 * error + 0.01
            )
            assert error < 0.05
            total += bound.mean().exp().item()
    assert total == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("length", [2, 7])
def test_a_staggered_flow_has_the_density_of_its_path(length: int) -> None:
    """Gaussian latents: whatever the order of the positions, the optimal field gives their density."""

    class Gaussian(Prior):
        def velocity(self, z_t: Tensor, t: Tensor, *_: Any, **__: Any) -> Tensor:
            t = t.unsqueeze(-1)
            return (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2) * z_t

    prior = Gaussian(
        PriorConfig(
            latent_dim=3,
            dim=8,
            heads=1,
            head_dim=8,
            rope_dim=4,
            layers=1,
            block_size=4,
            stagger=2.0,
        )
    )
    model = Cola(golden.detail_model().vae, prior, None)
    z0 = 0.5 * torch.randn(2, length, 3)
    found = prior_log_density(model, z0, 600, "exact", torch.Generator())
    expected = normal_log_density(z0, torch.zeros(3), torch.full((3,), math.log(0.25)))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=1e-3)
