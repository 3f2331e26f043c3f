"""Likelihood of texts under a model: posterior, prior and decoder terms, ELBO and IWAE bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cola_cli.api import Cola
from cola_cli.errors import InputError, UsageError
from cola_cli.flow import gaussian
from cola_cli.flow.likelihood import Divergence, diffusion_weight, elbo, iwae, log_density
from cola_cli.flow.path import position_speeds, position_times
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import Posterior
from cola_cli.models.transformer import Transformer

# At most, of the draws that are computed together.
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
        terms = {"posterior": self.posterior, "prior": self.prior, "decoder": self.decoder}
        means = {name: term.double().mean(0) for name, term in terms.items()}
        nats = means["posterior"] - means["prior"] - means["decoder"]
        means["perplexity"] = nats.clamp(max=700).exp()  # a number in any case
        columns = {name: mean.tolist() for name, mean in means.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def require_bound(model: Cola, divergence: Divergence = "hutchinson") -> None:
    """Raise InputError or UsageError for a model that has no bound, or none with this divergence."""
    config = model.prior.config
    if config.passes:
        raise InputError(
            f"{model.path} is distilled for few passes: its steps are not those of a flow, and have no"
            " likelihood.",
            "Name its teacher.",
        )
    if config.residual:
        raise UsageError(
            "the bound of a prior that predicts tokens knows no residual beside their codes.",
            "Train a prior without model.residual.",
        )
    if divergence == "exact" and not config.has_density:
        raise UsageError(
            f"this prior predicts {config.prediction}: its latents have no density, and so no divergence.",
            "Leave out --divergence; elbo is a bound on the probability of the tokens.",
        )


def prior_log_density(
    model: Cola, z0: Tensor, steps: int, divergence: Divergence, generator: torch.Generator
) -> Tensor:
    """log p(z_0^(b) | z_0^(<b)) of z0 (K, N, d), as shares of its positions (K, N).

    `generator` draws the probes of Hutchinson's estimate. All blocks are solved at once: a block's velocity
    depends on its own noisy latents and on clean ones that do not move, so the Jacobian is block-diagonal.
    """
    prior, device = model.prior, model.device
    block, stagger, length = prior.config.block_size, prior.config.stagger, z0.shape[1]
    with torch.no_grad():
        view = prior.teacher_forced(z0, block)
    blocks = -(-length // block)

    def velocity(z: Tensor, t: float) -> Tensor:
        time = torch.tensor([t], device=device)
        if not stagger:
            return prior.velocity(z, time, view).float()
        times = position_times(time, stagger, block).repeat(1, blocks)[:, :length]
        speeds = position_speeds(time, stagger, block).repeat(1, blocks)[:, :length]
        return speeds.unsqueeze(-1) * prior.velocity(z, times, view).float()

    probe = torch.randn(z0.shape, generator=generator).to(device)
    return log_density(velocity, z0, steps, divergence, probe, block)


@torch.inference_mode()
def masked_bound(
    network: Transformer, prefix: list[int], response: list[int], draws: int, seed: int
) -> float:
    """An estimate without bias of a bound on log p(response | prefix) of a masked-diffusion model, in nats.

    A number l of 1 to L tokens of the response is masked at random, and L / l times the log-probabilities of
    these is what a draw gives: the log-likelihood of filling in the response in a random order (LLaDA paper,
    arXiv 2502.09992, equation 6). The numbers of masks are spread evenly over the draws.
    """
    generator, length = torch.Generator().manual_seed(seed), len(response)
    even = (torch.arange(draws) / draws + torch.rand((), generator=generator)) % 1
    counts = (1 + (even * length).long()).clamp(max=length)
    order = torch.rand(draws, length, generator=generator).argsort(-1).argsort(-1)
    masked = (order < counts[:, None]).to(network.token_out.weight.device)
    tokens = torch.tensor([*prefix, *response], device=masked.device).expand(draws, -1)
    total = torch.zeros(draws, dtype=torch.float64)
    size = max(
        1,
        min(POSITIONS // tokens.shape[1], LOGITS // (tokens.shape[1] * network.config.vocab_size)),
    )
    for rows in torch.arange(draws).split(size):
        ids, own = tokens[rows].clone(), masked[rows]
        answer = ids[:, len(prefix) :].clone()
        ids[:, len(prefix) :][own] = network.config.mask_token_id
        logits = network(ids)[:, len(prefix) :].float().log_softmax(-1)
        chosen = logits.gather(-1, answer.unsqueeze(-1)).squeeze(-1)
        total[rows] = chosen.where(own, 0.0).double().sum(-1).cpu()
    return float((total * length / counts).mean())


@torch.no_grad()
def token_bound(
    prior: Prior, tokens: Tensor, z0: Tensor, draws: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A bound on log p(tokens) of a prior with a token head: two terms, each (draws, N), to be added.

    tokens (N,), z0 (N, d) clean latents, which are the history. Generation seen as diffusion of the tokens'
    codes c, about which latents vary with `code_variance`: noisy codes are denoised with the mean code under
    the head, and a position becomes a token, drawn from the head, when its time has come down to 0. So

        log p(x) >= -E int w(t) |c - E[c | z_t]|^2 dt + E log p(x | z at t = 0),  w: `diffusion_weight`,

    along the times of the positions of a block. The integral takes one time in each of `steps` strata.
    """
    config, length, device = prior.config, len(tokens), z0.device
    block, stagger, blocks = config.block_size, config.stagger, -(-length // config.block_size)
    codes, variance = prior.codes[tokens], prior.code_variance
    view = prior.teacher_forced(z0.unsqueeze(0), block, draws)
    place = (torch.arange(length, device=device) % block).expand(draws, -1)

    def predict(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At the times (block,) of the positions of every block: the output, z_t that it is for, and t."""
        t = times.repeat(blocks)[:length, None]
        noise = torch.randn(draws, *codes.shape, generator=generator).to(codes)
        z = (1 - t) * codes + ((1 - t) ** 2 * variance + t**2).sqrt() * noise
        output: Tensor = prior(z, prior.level_modulation(times, place), view)
        return output.float(), z, t

    diffusion = torch.zeros(draws, length, device=device)
    for stratum, offset in enumerate(torch.rand(steps, generator=generator).tolist()):
        time = torch.tensor((stratum + offset) / steps, device=device)
        times = position_times(time, stagger, block)
        estimate = prior.clean_estimate(*predict(times))
        weight = diffusion_weight(times[:, None], variance)  # (block, d)
        weight = weight * position_speeds(time, stagger, block)[:, None]
        errors = (codes - estimate).square() * weight.repeat(blocks, 1)[:length]
        diffusion += errors.sum(-1) / steps
    decoded = torch.zeros_like(diffusion)
    for position in range(block):
        time = torch.tensor(stagger * (1 - position / max(block - 1, 1)) / (1 + stagger))
        if stagger or not position:  # else all positions come down at once
            times = position_times(time.to(device), stagger, block)
            found = prior.token_logits(*predict(times)).log_softmax(-1)
        chosen = found.gather(-1, tokens.expand(draws, -1).unsqueeze(-1)).squeeze(-1)
        decoded += torch.where(place == position, chosen, 0.0)
    return -diffusion, decoded


def likelihood(
    model: Cola,
    ids: list[int],
    draws: int = 1,
    steps: int = 32,
    divergence: Divergence = "hutchinson",
    seed: int = 0,
) -> Likelihood:
    """The terms of one text of token ids; draws: K, computed in pieces. steps: of the ODE solver.

    Raises InputError when the text is empty or not a whole number of patches.
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
    exact = divergence == "exact" and model.prior.config.has_density
    return Likelihood(posteriors, priors, decoders, len(ids), exact)


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
    """log q(z|x), log p(z) and log p(x|z) of `draws` draws, each (draws, N).

    Of a prior with a token head, whose latents are codes without a posterior: 0 and the terms of
    `token_bound`.
    """
    config = model.vae.config
    if not model.prior.config.has_density:
        z0 = model.vae.to_prior(posterior.mean[0])
        terms = token_bound(model.prior, tokens[0], z0, draws, steps, noise)
        return torch.zeros_like(terms[0]), *terms
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
