"""Stage 1 of the Cola DLM paper: the Text VAE.

L = -E_q log p(x|z) + beta KL(q(z|x) || N(0, I)) + lambda_mask L_mask, with L_mask the cross-entropy at
tokens that were replaced by the extra embedding row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.flow import gaussian
from cola_cli.models.attention import apart
from cola_cli.models.text_vae import TextVAE
from cola_cli.settings.training import Mask
from cola_cli.settings.vae import VAESettings
from cola_cli.training import randomness, schedule
from cola_cli.training.objectives import objective as objectives
from cola_cli.training.objectives.objective import Batch, Draws, Objective

ACTIVE_VARIANCE = 0.01  # a channel is active when the variance of its mean over positions is larger


def draw_masks(
    rows: Rows, randoms: Sequence[np.random.Generator], mask: Mask, mask_token: int, weight: float
) -> Draws:
    """The masked copy of the tokens, with the weight of its loss; empty when the loss is off."""
    if not weight:
        return {}
    valid = objectives.token_weights(rows)
    masked = (randomness.uniform(randoms, rows.tokens.shape[1]) < mask.fraction) & (valid > 0)
    places = np.flatnonzero(masked)
    return {
        "masked_tokens": np.where(masked, mask_token, rows.tokens),
        "masked_places": places,
        "masked_weight": np.ones(len(places), np.float32),
        "lambda_mask": np.float64(weight),
    }


class TextVAEObjective(Objective):
    """The Text VAE with its stage-1 loss."""

    def __init__(self, vae: TextVAE, settings: VAESettings, length: int) -> None:
        super().__init__()
        self.vae = vae
        self.length = length
        self.settings = settings

    def draw(
        self, rows: Rows, randoms: Sequence[np.random.Generator], step: int, validation: bool
    ) -> list[Draws]:
        """Tokens, the masked copy, and noise for both posteriors."""
        config = self.vae.config
        positions = rows.tokens.shape[1] // config.patch_size
        weight = schedule.mask_weight(step, self.settings.mask)
        if validation:  # the masked accuracy is of interest from the start
            weight = self.settings.mask.weight or 1.0
        drawn: Draws = {
            "tokens": rows.tokens,
            "token_weight": objectives.token_weights(rows),
            "position_weight": objectives.position_weights(rows, config.patch_size),
            "noise": randomness.normal(randoms, positions, config.latent_dim),
            **objectives.drawn_pieces(rows, config.patch_size),
        }
        drawn |= draw_masks(rows, randoms, self.settings.mask, config.mask_token_id, weight)
        if "masked_tokens" in drawn:
            drawn["masked_noise"] = randomness.normal(randoms, positions, config.latent_dim)
        return [drawn]

    def forward(self, batch: Batch, evaluate: bool = False) -> dict[str, Tensor]:
        """tokens (B, L), noise (B, N, d) and weights -> the terms of the loss, nats."""
        mean, logvar, logits, masked_logits = encode_and_decode(self.vae, batch, self._fix)
        loss = self.settings.loss
        terms = {
            "reconstruction": objectives.reconstruction(
                logits, batch["tokens"], batch["token_weight"]
            ),
            "kl": objectives.weighted(
                gaussian.standard_normal_kl(mean, logvar), batch["position_weight"]
            ),
        }
        terms["loss"] = terms["reconstruction"] + loss.beta * terms["kl"]
        if masked_logits is not None:
            terms["mask"] = objectives.reconstruction(
                masked_logits, masked_targets(batch), batch["masked_weight"]
            )
            terms["loss"] = terms["loss"] + batch["lambda_mask"] * terms["mask"]
        if evaluate:
            terms |= accuracies(
                self.vae, batch, mean, masked_logits, self.settings.validation_noise
            )
            terms |= latent_moments(mean, logvar, batch["position_weight"])
        return terms

    def metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The scalars, and what the moments say of the latents."""
        return super().metrics(sums) | latent_metrics(sums)

    def _fix(self, logvar: Tensor) -> Tensor:
        loss = self.settings.loss
        return torch.full_like(logvar, -loss.log_snr) if loss.posterior == "fixed" else logvar


def encode_and_decode(
    vae: TextVAE, batch: Batch, fix: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Posterior of the clean tokens, logits from a draw of it, logits at the masked tokens if any.

    Both copies go through the networks together, the token head only where the loss looks:
    mean, logvar (B, N, d), logits (B, L, V), masked logits (masked tokens, V).
    """
    tokens, noise, pieces = batch["tokens"], batch["noise"], batch.get("pieces")
    rows = len(tokens)
    if masked := "masked_tokens" in batch:
        tokens = torch.cat((tokens, batch["masked_tokens"]))
        noise = torch.cat((noise, batch["masked_noise"]))
        pieces = None if pieces is None else pieces.repeat(2, 1)
    attend = apart(pieces, vae.config.block_size)
    posterior = vae.encode(tokens, None, attend)
    mean, logvar = posterior.mean, posterior.logvar
    if fix is not None:
        logvar = fix(logvar)
    hidden = vae.decode_hidden(gaussian.sample(mean, logvar, noise), None, attend)  # (B, L, D)
    masked_logits = None
    if masked:
        masked_logits = vae.token_out(hidden[rows:].flatten(0, 1)[batch["masked_places"]])
    return mean[:rows], logvar[:rows], vae.token_out(hidden[:rows]), masked_logits


def masked_targets(batch: Batch) -> Tensor:
    """The tokens under the masks, (masked tokens,)."""
    return batch["tokens"].flatten()[batch["masked_places"]]


def accuracies(
    vae: TextVAE, batch: Batch, mean: Tensor, masked_logits: Tensor | None, noise: float
) -> dict[str, Tensor]:
    """Share of tokens right from the posterior mean, from the mean with noise, and at masked tokens."""
    tokens, weight = batch["tokens"], batch["token_weight"]
    attend = apart(batch.get("pieces"), vae.config.block_size)

    def share(logits: Tensor, right: Tensor, of: Tensor) -> Tensor:
        return ((logits.argmax(-1) == right) * of).sum()

    metrics = {
        "accuracy": share(vae.decode(mean, None, attend), tokens, weight),
        "accuracy_noisy": share(
            vae.decode(mean + noise * batch["noise"], None, attend), tokens, weight
        ),
    }
    if masked_logits is not None:
        right = masked_targets(batch)
        metrics["accuracy_masked"] = share(masked_logits, right, batch["masked_weight"])
    return metrics


def latent_moments(mean: Tensor, logvar: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Weighted first and second moments of the means (d,), (d, d), and the mean variance (d,)."""
    weighted = mean * weight.unsqueeze(-1)
    return {
        "moment_mean": weighted.sum((0, 1)),
        "moment_square": torch.einsum("bni,bnj->ij", weighted, mean),
        "moment_variance": (logvar.exp() * weight.unsqueeze(-1)).sum((0, 1)),
    }


def latent_metrics(sums: dict[str, Tensor]) -> dict[str, float]:
    """logSNR = ln(E mu^2 / E sigma^2), active channels, effective rank of the means' covariance.

    The effective rank is the exponential of the entropy of the normalised eigenvalues: d when all
    directions are used alike, 1 when the latents have collapsed to a line.
    """
    if "moment_mean" not in sums:
        return {}
    mean, square = sums["moment_mean"].double(), sums["moment_square"].double()
    variance = sums["moment_variance"].double().mean()
    covariance = square - torch.outer(mean, mean)
    shares = torch.linalg.eigvalsh(covariance).clamp(min=0)
    shares = shares / shares.sum().clamp(min=1e-30)
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum()
    return {
        "log_snr": (square.diagonal().mean() / variance).log().item(),
        "active_channels": float((covariance.diagonal() > ACTIVE_VARIANCE).sum()),
        "effective_rank": entropy.exp().item(),
    }


def fix_log_variance(vae: TextVAE, log_snr: float) -> None:
    """Make the encoder give -log_snr as log-variance everywhere, so that the weights say it themselves."""
    d = vae.config.latent_dim
    with torch.no_grad():
        vae.posterior_out.weight[d:].zero_()
        vae.posterior_out.bias[d:].fill_(-log_snr)
