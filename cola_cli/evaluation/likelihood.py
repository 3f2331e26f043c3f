"""Likelihood of texts under a model: posterior, prior and decoder terms, ELBO and IWAE bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cola_cli.api import Cola
from cola_cli.errors import InputError
from cola_cli.flow import gaussian
from cola_cli.flow.likelihood import Divergence, elbo, iwae, log_density
from cola_cli.models.text_vae import Posterior

# Of draws that are worked off together: their positions, and the logits of these.
POSITIONS = 1 << 14
LOGITS = 1 << 27


@dataclass(frozen=True)
class Likelihood:
    """Terms of one text, natural logarithms, each (K, N): K posterior draws, N latents.

    posterior log q(z|x), prior log p(z) given earlier blocks, decoder log p(x|z) of the latent's tokens.
    exact: whether the prior's term is the density itself; else it is an estimate without bias.
    """

    posterior: Tensor
    prior: Tensor
    decoder: Tensor
    tokens: int
    exact: bool

    @property
    def log_weights(self) -> Tensor:
        """log w_k = log p(x|z) + log p(z) - log q(z|x), (K,)."""
        return (self.decoder + self.prior - self.posterior).sum(-1)

    @property
    def elbo(self) -> float:
        """The ELBO, or an estimate of it without bias: noise in the log-weights averages out."""
        return elbo(self.log_weights).item()

    @property
    def iwae(self) -> float | None:
        """The IWAE bound; None without exact densities.

        exp of a noisy log-weight has a mean above the weight's, so that the log of their mean bounds
        nothing and grows with K.
        """
        return iwae(self.log_weights).item() if self.exact else None

    def table(self) -> list[dict[str, float]]:
        """Mean terms of each latent, and the per-token perplexity exp(posterior - prior - decoder)."""
        rows = []
        terms = (self.posterior.mean(0), self.prior.mean(0), self.decoder.mean(0))
        for posterior, prior, decoder in zip(*(t.tolist() for t in terms), strict=True):
            exponent = posterior - prior - decoder
            perplexity = math.exp(exponent) if exponent < 700 else math.inf
            rows.append(
                {
                    "posterior": posterior,
                    "prior": prior,
                    "decoder": decoder,
                    "perplexity": perplexity,
                }
            )
        return rows


def prior_log_density(
    model: Cola, z0: Tensor, steps: int, divergence: Divergence, generator: torch.Generator
) -> Tensor:
    """log p(z_0^(b) | z_0^(<b)) of z0 (K, N, d), as shares of its positions (K, N).

    `generator` draws the probes of Hutchinson's estimate. All blocks are solved at once: a block's velocity
    depends on its own noisy latents and on clean ones that do not move, so the Jacobian is block-diagonal.
    """
    prior, device = model.prior, model.device
    with torch.no_grad():
        attend = prior.teacher_forced(z0, prior.config.block_size)
    table = prior.rotation(torch.arange(z0.shape[1], device=device))

    def velocity(z: Tensor, t: float) -> Tensor:
        return prior.velocity(z, torch.tensor([t], device=device), table, attend).float()

    probe = torch.randn(z0.shape, generator=generator).to(device)
    return log_density(velocity, z0, steps, divergence, probe, prior.config.block_size)


def likelihood(
    model: Cola,
    ids: list[int],
    draws: int = 1,
    steps: int = 32,
    divergence: Divergence = "hutchinson",
    seed: int = 0,
) -> Likelihood:
    """The terms of one text of token ids; draws is K, worked off in pieces; steps those of the ODE solver.

    Raises InputError when the text is empty or no whole number of patches.
    """
    config = model.vae.config
    if not ids or len(ids) % config.patch_size:
        raise InputError(
            f"a text of {len(ids)} tokens cannot be scored.",
            f"Give a positive multiple of {config.patch_size} tokens.",
        )
    tokens = torch.tensor([ids], device=model.device)
    noise, probes = (torch.Generator().manual_seed(number) for number in (seed, seed + 1))
    with torch.no_grad():
        posterior = model.vae.encode(tokens)
    at_a_time = max(1, min(POSITIONS // len(ids), LOGITS // (len(ids) * config.vocab_size)))
    pieces = [
        _terms(
            model,
            tokens,
            posterior,
            min(at_a_time, draws - start),
            steps,
            divergence,
            noise,
            probes,
        )
        for start in range(0, draws, at_a_time)
    ]
    posteriors, priors, decoders = (torch.cat(term) for term in zip(*pieces, strict=True))
    return Likelihood(posteriors, priors, decoders, len(ids), divergence == "exact")


def _terms(
    model: Cola,
    tokens: Tensor,
    posterior: Posterior,
    draws: int,
    steps: int,
    divergence: Divergence,
    noise: torch.Generator,
    probes: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """log q(z|x), log p(z) and log p(x|z) of so many draws, each (draws, N)."""
    config = model.vae.config
    with torch.no_grad():
        mean, logvar = (part.expand(draws, -1, -1) for part in posterior)
        sample = gaussian.sample(
            mean, logvar, torch.randn(mean.shape, generator=noise).to(model.device)
        )
        # the density of the scaled latents, which the prior and the decoder work on
        volume = config.latent_dim * math.log(abs(config.scaling_factor))
        log_posterior = gaussian.normal_log_density(sample, mean, logvar) - volume
        z0 = model.vae.to_prior(sample)
        logits = model.vae.decode(z0).float().log_softmax(-1)
        chosen = logits.gather(-1, tokens.expand(draws, -1).unsqueeze(-1)).squeeze(-1)
        log_decoder = chosen.unflatten(1, (-1, config.patch_size)).sum(-1)
    return log_posterior, prior_log_density(model, z0, steps, divergence, probes), log_decoder


def response_score(
    model: Cola, prefix: list[int], response: list[int], **options: Any
) -> dict[str, float | None]:
    """log p(response | prefix) = log p(prefix, response) - log p(prefix), by both bounds.

    A difference of two bounds: an estimate, not a bound. iwae: None without exact densities.
    """
    both = likelihood(model, prefix + response, **options)
    alone = likelihood(model, prefix, **options)
    tight = None if both.iwae is None or alone.iwae is None else both.iwae - alone.iwae
    return {"elbo": both.elbo - alone.elbo, "iwae": tight}
