"""Stage 2 of the Cola DLM paper: flow matching of the block-causal prior, VAE frozen or trained jointly.

    z_t = (1 - t) z_0 + t z_1,  target z_1 - z_0,  V_b = {sg(z_0^(<b)), z_t^(b)},  one t a block

A staggered prior has one t a position instead (`flow.path.position_times`). A prior with a token head learns
p(token | z_t, history) by cross-entropy, L = L_CE, and its velocity follows from the mean code under p;
the clean copy may learn to foretell the tokens after it, L = L_CE + lambda_next L_next. Of conversations only
positions of answers are learnt; one that stands for several tokens (a patch) is if the first of them is.

Frozen: z_0 is a draw from the posterior in the latent shards, L = L_FM. Joint: z_0 comes from the VAE being
trained, and L = lambda_VAE (reconstruction + beta E log q + lambda_mask L_mask) + lambda_fm L_FM
+ lambda_ref KL(q || q_ref), with q_ref the posterior in the shards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cola_cli.corpus.sequences import Rows, Sequences
from cola_cli.flow import gaussian, timesteps
from cola_cli.flow.path import (
    interpolate,
    linear_prediction_loss,
    position_times,
    target_velocity,
)
from cola_cli.models.attention import apart, earlier_length
from cola_cli.models.config import LEVELS, TextVAEConfig
from cola_cli.models.modulation import LevelModulation, Modulation
from cola_cli.models.prior import Prior
from cola_cli.models.rotary import wide
from cola_cli.models.text_vae import TextVAE
from cola_cli.settings.prior import Joint, PriorSettings, Timesteps
from cola_cli.training import randomness, schedule
from cola_cli.training.objectives import objective as objectives
from cola_cli.training.objectives.objective import Batch, Draws, Objective
from cola_cli.training.objectives.text_vae import (
    accuracies,
    draw_masks,
    encode_and_decode,
    latent_metrics,
    latent_moments,
    masked_targets,
)

SELF_CONDITIONED = 0.5  # share of the sequences that are given a first estimate
CODE_TOKENS = 1 << 22


def draw_timesteps(
    randoms: Sequence[np.random.Generator],
    blocks: int,
    law: Timesteps,
    latent_dim: int,
    decided: np.ndarray | None = None,
) -> np.ndarray:
    """One t in [0, 1] a block, (B, blocks), 0 clean and 1 noise; `decided` are quantiles of that law."""
    if law.law == "logit-normal":
        loc = timesteps.location(latent_dim) if law.loc is None else law.loc
        return timesteps.logit_normal(randomness.normal(randoms, blocks), loc, law.scale)
    t = randomness.uniform(randoms, blocks)
    if law.law == "decided":
        assert decided is not None
        return timesteps.from_quantiles(t, decided)
    return timesteps.shifted(t, law.shift) if law.law == "shifted" else t


def draw_clean(
    randoms: Sequence[np.random.Generator], blocks: int, block_size: int, probability: float
) -> np.ndarray:
    """(B, blocks * block_size) bool: with `probability` a block's first 1 to block_size - 1 positions."""
    if block_size == 1:
        return np.zeros((len(randoms), blocks), bool)
    chosen = randomness.uniform(randoms, blocks) < probability
    parts = 1 + np.floor(randomness.uniform(randoms, blocks) * (block_size - 1)).astype(np.int64)
    clean = np.arange(block_size) < (parts * chosen)[:, :, None]  # (B, blocks, block_size)
    return clean.reshape(len(randoms), -1)


def draw_answers(
    randoms: Sequence[np.random.Generator], response: np.ndarray, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of positions of answers (B, N) bool: which are known, and which are learnt, each (B, N) bool.

    As when sampling begins within a block: one of its answers is drawn, what is before that in the block is
    known, and what is behind it is neither known nor learnt.
    """
    blocks = response.reshape(len(response), -1, block_size)
    begins = blocks & ~np.pad(blocks, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    number = begins.cumsum(2)  # of the answer that began last, from 1 in each block
    drawn = randomness.uniform(randoms, blocks.shape[1])[:, :, None] * number[:, :, -1:]
    drawn = 1 + np.floor(drawn).astype(np.int64)
    known, learnt = number < drawn, blocks & (number == drawn)
    return known.reshape(response.shape), learnt.reshape(response.shape)


def draw_known(
    rows: Rows,
    randoms: Sequence[np.random.Generator],
    block_size: int,
    patch_size: int,
    partly_clean: float,
    copies: int = 1,
    window: slice = slice(None),
) -> tuple[np.ndarray, np.ndarray]:
    """Which positions of a window are known, and the weights of those that are learnt.

    Both (B, copies * window), the first bool.
    """
    weight = np.tile(objectives.learnt_weights(rows)[:, ::patch_size][:, window], copies)
    clean = draw_clean(randoms, weight.shape[1] // block_size, block_size, partly_clean)
    if rows.response is not None:
        known, learnt = draw_answers(randoms, weight > 0, block_size)
        clean, weight = clean | known, weight * learnt
    return clean, weight


def draw_levels(
    randoms: Sequence[np.random.Generator], t: np.ndarray, stagger: float, block_size: int
) -> np.ndarray:
    """The times of staggered positions in units of 1 / LEVELS, (B, N) int64.

    One position of each block, any of them, is at the time `t` (B, blocks) that was drawn; the others follow
    from the stagger.
    """
    place = np.floor(randomness.uniform(randoms, t.shape[1]) * block_size) / max(block_size - 1, 1)
    time = (t + stagger * (1 - place)) / (1 + stagger)
    times = position_times(time, stagger, block_size)  # (B, blocks, block_size)
    return np.rint(times * LEVELS).astype(np.int64).reshape(len(t), -1)


def noisy_window(positions: int, block_size: int, share: float, step: int) -> range:
    """The positions of the blocks that the noisy copies of an update hold, each block as often as the others.

    Where the share does not divide the blocks, the last window begins earlier and holds some again.
    """
    blocks = positions // block_size
    held = math.ceil(share * blocks)
    first = min(step % math.ceil(blocks / held) * held, blocks - held)
    return range(first * block_size, (first + held) * block_size)


def _size_of_update(step: int, curriculum: Sequence[tuple[int, int]]) -> int | None:
    """The block size of an update that is in a curriculum of (size, updates), None after its end."""
    for size, updates in curriculum:
        if step < updates:
            return size
        step -= updates
    return None


def _rows_of_copies(values: np.ndarray, copies: int) -> np.ndarray:
    """(B, copies * n, ...) -> (B * copies, n, ...)."""
    return values.reshape(len(values) * copies, -1, *values.shape[2:])


class _Asked(NamedTuple):
    """The arguments of `Objective.draw`, of the sequences that share a block size."""

    rows: Rows
    randoms: Sequence[np.random.Generator]
    step: int
    validation: bool


class FlowMatching(Objective):
    """The prior alone, on posteriors read from latent shards."""

    def __init__(
        self,
        prior: Prior,
        settings: PriorSettings,
        latent_variance: np.ndarray,
        length: int,
        vae: TextVAEConfig,
        decoder: TextVAE | None = None,
    ) -> None:
        """decoder: of the frozen VAE, for `loss.decoder`."""
        super().__init__()
        # in a tuple, so that it is not a part of this module: neither trained nor saved nor sharded
        self._decoder = () if decoder is None else (decoder.requires_grad_(False),)
        self.length = length
        self.patch_size = vae.patch_size
        self.prior = prior
        self.settings = settings
        self.to_prior = vae.to_prior
        # (d,) on the prior's scale, for a linear prediction's loss
        self.latent_variance = latent_variance
        self._early = schedule.early_blocks(settings.data.block_curriculum, settings.train.steps)
        self.decided: np.ndarray | None = None  # quantiles of the law of timesteps of that name

    @property
    def _has_flow(self) -> bool:
        """Whether the loss has L_FM: a token head alone, without a residual, has not."""
        config = self.prior.config
        return config.prediction != "tokens" or config.residual

    def draw(
        self, rows: Rows, randoms: Sequence[np.random.Generator], step: int, validation: bool
    ) -> list[Draws]:
        """Posterior, noise, timesteps and weights; one micro-batch for each block size drawn."""
        sizes = self.settings.data.block_sizes
        early = None if validation else _size_of_update(step, self._early)
        if not sizes or validation or early:
            asked = _Asked(rows, randoms, step, validation)
            return [self._draw(asked, early or self.prior.config.block_size)]
        chosen = np.array([sizes[random.integers(len(sizes))] for random in randoms])
        drawn = []
        for size in sorted(set(sizes)):
            places = np.flatnonzero(chosen == size)
            if len(places):
                few = [randoms[int(place)] for place in places]
                drawn.append(self._draw(_Asked(rows.take(places), few, step, False), size))
        return drawn

    def _draw(self, asked: _Asked, block_size: int) -> Draws:
        settings, rows, randoms = self.settings, asked.rows, asked.randoms
        assert rows.mean is not None
        assert rows.logvar is not None
        positions, channels = rows.mean.shape[1:]
        share = 1.0 if asked.validation else settings.data.noisy_share
        window = noisy_window(positions, block_size, share, asked.step)
        held = slice(window.start, window.stop)
        copies = settings.data.noisy_copies  # side by side here, rows of their own below
        blocks = copies * len(window) // block_size
        part = settings.data.partly_clean
        clean, weight = draw_known(rows, randoms, block_size, self.patch_size, part, copies, held)
        t = draw_timesteps(randoms, blocks, settings.timesteps, channels, self.decided)
        t = t.astype(np.float32)
        drawn: Draws = {
            "block_size": block_size,
            "mean": rows.mean,
            "logvar": rows.logvar,
            "position_weight": objectives.position_weights(rows, self.patch_size),
            "noise": randomness.normal(randoms, positions, channels),
            **objectives.drawn_pieces(rows, self.patch_size),
        }
        noisy: Draws = {
            "flow_weight": np.where(clean, np.float32(0), weight),
            "clean": clean,
            "t": t,
            "z1": randomness.normal(randoms, copies * len(window), channels),
        }
        config = self.prior.config
        if linear_too := asked.validation and self._has_flow:
            linear = linear_prediction_loss(t, self.latent_variance)
            noisy["linear"] = linear.repeat(block_size, 1).astype(np.float32)
        if config.stagger:
            levels = draw_levels(randoms, t, config.stagger, block_size)
            levels[clean] = 0
            # positions that have not begun or are finished do not move, so their velocity is not asked for
            moving = (levels > 0) & (levels < LEVELS)
            noisy |= {"levels": levels, "flow_weight": np.where(moving, weight, np.float32(0))}
            if linear_too:
                times = (levels / LEVELS).astype(np.float32)
                noisy["linear"] = linear_prediction_loss(times, self.latent_variance)
        if config.self_conditioning:
            noisy["estimated"] = randomness.uniform(randoms, copies) < SELF_CONDITIONED
        if len(window) < positions:
            drawn["window"] = np.array(window)
        drawn["clean_places"] = np.flatnonzero(clean)
        if config.prediction == "tokens":
            places = np.flatnonzero(noisy["flow_weight"])
            drawn |= {
                "target_places": places,
                "targets": np.tile(rows.tokens[:, held], copies).reshape(-1)[places],
                "target_weight": noisy["flow_weight"].reshape(-1)[places],
            }
        if settings.loss.next_token and config.prediction == "tokens":
            drawn |= self._foretold(rows, block_size)
        if self._decoder:
            drawn["tokens"] = rows.tokens
        if settings.data.history_noise and not asked.validation:
            time = settings.data.history_noise * randomness.uniform(randoms, 1)
            drawn["history_time"] = time.astype(np.float32)[:, :, None]  # (B, 1, 1)
            drawn["history_noise"] = randomness.normal(randoms, positions, channels)
        return drawn | {name: _rows_of_copies(value, copies) for name, value in noisy.items()}

    def _foretold(self, rows: Rows, block_size: int) -> Draws:
        """The tokens that the clean copy is to foretell, and their weights."""
        ahead = 1 if self.prior.config.causal_history else block_size
        next_ = slice(ahead, ahead + earlier_length(rows.tokens.shape[1], block_size))
        weight = objectives.learnt_weights(rows)[:, next_]
        pieces = rows.position_pieces()
        if pieces is not None:  # nothing foretells another document
            weight = weight * (pieces[:, next_] == pieces[:, : weight.shape[1]])
        return {"next_tokens": rows.tokens[:, next_], "next_weight": weight}

    def forward(self, batch: Batch, evaluate: bool = False) -> dict[str, Tensor]:
        """mean, logvar (B, N, d), t (B, N / b) and draws -> the flow-matching loss."""
        mean, logvar = wide(batch["mean"]), wide(batch["logvar"])
        z0 = self.to_prior(clean_latents(mean, logvar, batch["noise"], self.settings.data.clean))
        terms = self.prediction(z0, z0, batch, evaluate)
        weights = self.settings.loss
        terms["loss"] = terms["cross_entropy" if "cross_entropy" in terms else "flow"]
        if "cross_entropy" in terms and "flow" in terms:
            terms["loss"] = terms["loss"] + weights.flow * terms["flow"]
        for name, weight in (("next_token", weights.next_token), ("decoder", weights.decoder)):
            if name in terms:
                terms["loss"] = terms["loss"] + weight * terms[name]
        if evaluate:
            if "flow" in terms:
                terms |= predictions_without_a_model(z0, batch)
            terms |= latent_moments(mean, logvar, batch["position_weight"])
        return terms

    def prediction(
        self, z0: Tensor, noised: Tensor, batch: Batch, evaluate: bool = False
    ) -> dict[str, Tensor]:
        """L_FM of clean latents `z0`, L_CE of a token head, and what else is asked for; z_t is made from
        `noised`, the same with or without gradient."""
        prior, z0 = self.prior, z0.detach()
        block, pieces = batch["block_size"], batch.get("pieces")
        copies = len(batch["z1"]) // len(z0)
        seen = z0
        if "history_time" in batch:
            seen = interpolate(z0, batch["history_noise"], batch["history_time"])
        clean_hidden, history = prior.clean_copy(seen, block, "next_tokens" in batch, pieces)
        window = batch.get("window")  # positions of the noisy copies, if not all
        view = prior.noisy_copies(history, z0, block, copies, pieces, clean_hidden, window)
        if window is not None:
            z0, noised = z0.index_select(1, window), noised.index_select(1, window)
        z0, noised = z0.repeat_interleave(copies, 0), noised.repeat_interleave(copies, 0)
        t = self._times(batch)  # (B K, N, 1)
        z_t = interpolate(noised, batch["z1"], t)
        modulation = self._modulation(batch)
        estimate = None
        if prior.config.self_conditioning:
            with torch.no_grad():
                output = prior(z_t, modulation, view)
                estimate = prior.clean_estimate(output, z_t, t) * batch["estimated"].unsqueeze(-1)
        hidden = prior.hidden(z_t, modulation, view, estimate)
        output = prior.latent_out(hidden) if self._has_flow or self._decoder else None
        terms = {}
        if prior.config.prediction == "tokens":
            places = batch["target_places"]
            if output is None:
                chosen = prior.latent_out(hidden.flatten(0, 1)[places])
            else:
                chosen = output.flatten(0, 1)[places]
            own_t = t.expand(*z_t.shape[:2], 1).flatten(0, 1)[places]
            logits = prior.token_logits(chosen, z_t.flatten(0, 1)[places], own_t)
            targets, weight = batch["targets"], batch["target_weight"]
            terms["cross_entropy"] = objectives.reconstruction(logits, targets, weight)
            if evaluate:
                terms["accuracy"] = ((logits.argmax(-1) == targets) * weight).sum()
            if clean_hidden is not None and "next_tokens" in batch:
                foretold = prior.logits(prior.latent_out(clean_hidden))
                terms["next_token"] = objectives.reconstruction(
                    foretold, batch["next_tokens"], batch["next_weight"]
                )
        if output is None:
            return terms
        if self._has_flow:
            velocity = prior.to_velocity(output, z_t, t)
            errors = (wide(velocity) - target_velocity(z0, batch["z1"])).square().mean(-1)
            terms["flow"] = (errors * batch["flow_weight"]).sum()
        if self._decoder:
            decoder = self._decoder[0].to(z0.device)
            pieces = None if pieces is None else pieces.repeat_interleave(copies, 0)
            attend = apart(pieces, decoder.config.block_size)
            read = decoder.decode(prior.clean_estimate(output, z_t, t), None, attend)
            tokens = batch["tokens"].repeat_interleave(copies, 0)
            weight = batch["flow_weight"].repeat_interleave(self.patch_size, 1) / self.patch_size
            terms["decoder"] = objectives.reconstruction(read, tokens, weight)
        return terms

    def _times(self, batch: Batch) -> Tensor:
        """The time of every position, (B, N, 1)."""
        if "levels" in batch:
            return (batch["levels"].to(batch["z1"].dtype) / LEVELS).unsqueeze(-1)
        t = batch["t"].repeat_interleave(batch["block_size"], 1).masked_fill(batch["clean"], 0)
        return t.unsqueeze(-1)

    def _modulation(self, batch: Batch) -> Modulation | LevelModulation:
        prior, device = self.prior, batch["z1"].device
        if "levels" in batch:
            times = torch.arange(LEVELS + 1, device=device) / LEVELS
            return prior.level_modulation(times, batch["levels"])
        zero = prior.modulation(torch.zeros(1, device=device))
        return prior.modulation(batch["t"]).with_clean(batch["clean_places"], zero)

    def metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The scalars, what the moments say of the latents, and the loss of predicting the mean."""
        metrics = super().metrics(sums) | latent_metrics(sums)
        if "target_mean" in sums:
            metrics["flow_of_mean"] = (
                sums["flow_of_zero"] - sums["target_mean"].square().mean()
            ).item()
        return metrics


class JointTraining(FlowMatching):
    """Prior and Text VAE together; the posterior in the shards is the reference q_ref."""

    def __init__(
        self,
        prior: Prior,
        vae: TextVAE,
        settings: PriorSettings,
        latent_variance: np.ndarray,
        length: int,
    ) -> None:
        super().__init__(prior, settings, latent_variance, length, vae.config)
        self.vae = vae

    def _draw(self, asked: _Asked, block_size: int) -> Draws:
        mask, rows, step = self.settings.mask, asked.rows, asked.step
        weight = mask.weight if asked.validation else schedule.mask_weight(step, mask)
        drawn = super()._draw(asked, block_size) | {
            "tokens": rows.tokens,
            "token_weight": objectives.token_weights(rows),
            "vae_moves": vae_moves(step, self.settings.joint),
        }
        drawn |= draw_masks(rows, asked.randoms, mask, self.vae.config.mask_token_id, weight)
        if "masked_tokens" in drawn:
            drawn["masked_noise"] = randomness.normal(asked.randoms, *drawn["noise"].shape[1:])
        return drawn

    def forward(self, batch: Batch, evaluate: bool = False) -> dict[str, Tensor]:
        """Tokens (B, L), reference posterior (B, N, d) and draws -> all terms of the joint loss."""
        settings = self.settings
        with torch.set_grad_enabled(torch.is_grad_enabled() and batch["vae_moves"]):
            mean, logvar, logits, masked_logits = encode_and_decode(self.vae, batch)
            terms = self._vae_terms(batch, mean, logvar, logits, masked_logits)
        z0 = self.to_prior(clean_latents(mean, logvar, batch["noise"], settings.data.clean))
        noised = z0 if settings.loss.flow_gradient == "latent" else z0.detach()
        terms |= self.prediction(z0, noised, batch, evaluate)
        terms["loss"] = terms["loss"] + settings.loss.flow * terms["flow"]
        if evaluate:
            terms |= predictions_without_a_model(z0, batch)
            terms |= accuracies(self.vae, batch, mean, masked_logits, 0.5)
            terms |= latent_moments(mean, logvar, batch["position_weight"])
        return terms

    def _vae_terms(
        self,
        batch: Batch,
        mean: Tensor,
        logvar: Tensor,
        logits: Tensor,
        masked_logits: Tensor | None,
    ) -> dict[str, Tensor]:
        weights, positions = self.settings.loss, batch["position_weight"]
        other_mean, other_logvar = wide(batch["mean"]), wide(batch["logvar"])
        drift = (mean - other_mean).square().mean(-1)
        terms = {
            "reconstruction": objectives.reconstruction(
                logits, batch["tokens"], batch["token_weight"]
            ),
            "negative_entropy": objectives.weighted(gaussian.negative_entropy(logvar), positions),
            "reference": objectives.weighted(
                gaussian.normal_kl(mean, logvar, other_mean, other_logvar), positions
            ),
            "drift": (drift * positions).sum().detach(),
        }
        vae_loss = terms["reconstruction"] + weights.beta * terms["negative_entropy"]
        if masked_logits is not None:
            terms["mask"] = objectives.reconstruction(
                masked_logits, masked_targets(batch), batch["masked_weight"]
            )
            vae_loss = vae_loss + batch["lambda_mask"] * terms["mask"]
        terms["loss"] = weights.vae * vae_loss + weights.reference * terms["reference"]
        return terms

    def parts(self) -> list[tuple[nn.Module, float]]:
        """The prior, and the VAE at its own learning rate."""
        return [(self.prior, 1.0), (self.vae, self.settings.joint.vae_lr_ratio)]


def vae_moves(step: int, joint: Joint) -> bool:
    """Whether the VAE is trained at update `step`: always, or in the first steps of each cycle."""
    return not joint.cycle or step % joint.cycle < joint.moving


def clean_latents(mean: Tensor, logvar: Tensor, noise: Tensor, clean: str) -> Tensor:
    """z_0 (B, N, d) of posteriors, before scaling: a "sample" with this noise, or the "mean"."""
    return mean if clean == "mean" else gaussian.sample(mean, logvar, noise)


class TokenCodes(NamedTuple):
    """Where tokens lie among the latents, on the prior's scale.

    codes: the mean latent (V, d) of each token; variance: (d,) about these means; counts: (V,) of the tokens.
    """

    codes: np.ndarray
    variance: np.ndarray
    counts: np.ndarray


def token_codes(sequences: Sequences, vae: TextVAEConfig, vocab_size: int) -> TokenCodes:
    """The codes over some CODE_TOKENS tokens; one that does not occur there has the mean of all latents."""
    sums = np.zeros((vocab_size, vae.latent_dim))
    squares = np.zeros(vae.latent_dim)
    counts = np.zeros(vocab_size)
    for rows in sequences.batches(64):
        assert rows.mean is not None
        assert rows.logvar is not None
        real = objectives.token_weights(rows) > 0
        tokens, mean = rows.tokens[real], rows.mean[real].astype(np.float64)
        np.add.at(sums, tokens, mean)
        np.add.at(counts, tokens, 1)
        squares += (mean**2 + np.exp(rows.logvar[real].astype(np.float64))).sum(0)
        if counts.sum() >= CODE_TOKENS:
            break
    total = max(counts.sum(), 1)
    own = sums / np.maximum(counts, 1)[:, None]
    variance = (squares - (counts[:, None] * own**2).sum(0)) / total * vae.scaling_factor**2
    codes = vae.to_prior(np.where(counts[:, None] > 0, own, sums.sum(0) / total))
    return TokenCodes(codes, variance, counts)


def predictions_without_a_model(z0: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The flow loss of predicting 0, of the best linear function of z_t, and the mean of the target (d,)."""
    weight = batch["flow_weight"]
    z0 = z0.repeat_interleave(len(weight) // len(z0), 0)
    target = target_velocity(z0, batch["z1"])
    return {
        "flow_of_zero": (target.square().mean(-1) * weight).sum(),
        "flow_of_linear": (batch["linear"] * weight).sum(),
        "target_mean": (target * weight.unsqueeze(-1)).sum((0, 1)),
    }
