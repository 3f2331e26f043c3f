"""Progressive distillation of a prior (Salimans and Ho, 2022), in one stage from many steps to few.

The teacher takes every block of a sequence from noise to latents in K guided Euler steps behind its clean
history. Each Euler step is z' = r z + (1 - r) z_0 with r = t'/t and the teacher's clean estimate z_0, so
K / N steps together are one step with the mean of the estimates, weighted by what is left of each. The
student learns to predict that mean at the N times at which it will be asked, without guidance:

    token head   the weighted mean of the teacher's softmaxes, by KL divergence
    otherwise    the mean velocity (z' - z) / (t' - t), or z_0 = z - t v of it, by squared error
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.flow.guidance import guided, is_guided
from cola_cli.flow.path import T_MIN, position_times
from cola_cli.flow.solvers import uniform_grid
from cola_cli.models.attention import BlockCausal
from cola_cli.models.config import TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.rotary import wide
from cola_cli.settings.distill import DistillSettings
from cola_cli.settings.prior import CleanData
from cola_cli.training import randomness
from cola_cli.training.objectives.flow_matching import clean_latents, draw_known
from cola_cli.training.objectives.objective import Batch, Draws, Objective, drawn_pieces

TINY = 1e-6  # of a time


class SolverStep(NamedTuple):
    """A solver step of all blocks: z at `t`, the network's output for it, z at `end`.

    z, moved (B, N, d), output (B, N, out_dim), t and end (N, 1).
    """

    z: Tensor
    output: Tensor
    moved: Tensor
    t: Tensor
    end: Tensor


class Distillation(Objective):
    """A student that does in N passes what its teacher does in K steps."""

    times: Tensor  # (K + 1, N, 1), of every position before the first step, ..., after the last
    values: Tensor  # (count,) the different ones, 0 first
    levels: Tensor  # (K + 1, N), their places in `values`

    def __init__(
        self,
        student: Prior,
        teacher: Prior,
        settings: DistillSettings,
        length: int,
        vae: TextVAEConfig,
    ) -> None:
        super().__init__()
        self.student, self.settings = student, settings
        # in a tuple, so that it is not a part of this module: neither trained nor saved nor sharded
        self._teacher = (teacher.requires_grad_(False),)
        self.length, self.patch_size, self.to_prior = length, vae.patch_size, vae.to_prior
        config = student.config
        blocks = length // vae.patch_size // config.block_size
        grid = torch.tensor(uniform_grid(settings.teacher.steps))
        times = position_times(grid, config.stagger, config.block_size)  # (K + 1, block_size)
        values, levels = times.unique(return_inverse=True)
        self.register_buffer("times", times.repeat(1, blocks).unsqueeze(-1), persistent=False)
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("levels", levels.repeat(1, blocks), persistent=False)
        self._stride = settings.teacher.steps // settings.passes

    def draw(
        self, rows: Rows, randoms: Sequence[np.random.Generator], step: int, validation: bool
    ) -> list[Draws]:
        """Posterior, noise, which positions are known, and weights."""
        block_size = self.student.config.block_size
        drawn, weight = draw_blocks(rows, randoms, block_size, self.settings.data, self.patch_size)
        return [drawn | {"moving_weight": np.where(drawn["clean"], np.float32(0), weight)}]

    def forward(self, batch: Batch, evaluate: bool = False) -> dict[str, Tensor]:
        """mean, logvar (B, N, d) and draws -> the distance of the student's predictions to the teacher's."""
        z0, start = begun_blocks(batch, self.to_prior, self.settings.data)
        clean = batch["clean"].unsqueeze(-1)
        options = self.settings.teacher
        with torch.no_grad():
            known, pieces = (z0, batch["clean"], self.values), batch.get("pieces")
            teacher = Blocks(self._teacher[0].to(z0.device), *known, options.guidance, pieces)
        student = Blocks(self.student, *known, pieces=pieces)
        steps = self._steps(teacher, start, clean, 1, options.head_temperature)
        loss, estimate = z0.new_zeros(()), None
        for levels, share in zip(self.levels[:: self._stride], self._shares(), strict=False):
            with torch.no_grad():
                target = merged(
                    islice(steps, self._stride), teacher.prior, options.head_temperature
                )
            output = student(target.z, levels, estimate)
            distance = self._distance(wide(output), target)
            loss = loss + (distance * share * batch["moving_weight"]).sum()
            if self.student.config.self_conditioning:
                estimate = self.student.clean_estimate(output.detach(), target.z, target.t)
        terms = {"loss": loss}
        if evaluate:
            terms |= self._gaps(
                start, clean, target.moved, student, teacher, batch["moving_weight"]
            )
        return terms

    def _steps(
        self, network: Blocks, z: Tensor, clean: Tensor, stride: int, temperature: float
    ) -> Iterator[SolverStep]:
        """The way of all blocks from z at t = 1 to t = 0, `stride` of the teacher's steps at a time."""
        prior, estimate, options = network.prior, None, self.settings.teacher
        for first in range(0, options.steps, stride):
            t, end = self.times[first], self.times[first + stride]
            guides = is_guided(
                1 - first / options.steps, network.guidance, options.guidance_interval
            )
            output = network(z, self.levels[first], estimate, guides)
            velocity = prior.to_velocity(output, z, t, temperature)
            moved = torch.where(clean, z, z + (end - t) * velocity)
            if prior.config.self_conditioning:
                estimate = prior.clean_estimate(output, z, t, temperature)
            yield SolverStep(z, output, moved, t, end)
            z = moved

    def _distance(self, output: Tensor, target: SolverStep) -> Tensor:
        """How far a prediction (B, N, out_dim) is from what it should be, (B, N)."""
        wanted = target.output
        if self.student.config.prediction == "tokens":
            logits = self.student.token_logits(output, target.z, target.t)
            return (torch.xlogy(wanted, wanted) - wanted * logits.log_softmax(-1)).sum(-1)
        return (output - wanted).square().mean(-1)

    def _shares(self) -> Tensor:
        """The weight of each pass at each position, (passes, N): equal over those in which it moves."""
        times = self.times[:: self._stride, :, 0]
        moves = (times[:-1] > times[1:]).float()
        return moves / moves.sum(0)

    def _gaps(
        self, start: Tensor, clean: Tensor, made: Tensor, student: Blocks, teacher: Blocks,
        weight: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """How far from what the teacher has `made` (B, N, d) of the noise one comes in `passes` steps.

        Squared distances of the student and of the teacher itself, and of a token head the share of
        latents that are nearest to the same code.
        """
        temperature = self.settings.teacher.head_temperature
        *_, own = self._steps(student, start, clean, self._stride, 1.0)
        *_, few = self._steps(teacher, start, clean, self._stride, temperature)
        terms = {}
        for name, step in (("gap", own), ("gap_of_teacher", few)):
            terms[name] = ((wide(step.moved) - made).square().mean(-1) * weight).sum()
        if self.student.config.prediction == "tokens":
            read = self.student.nearest_tokens
            same = read(own.moved) == read(made)
            terms["accuracy"] = (same * weight).sum()
        return terms


def draw_blocks(
    rows: Rows,
    randoms: Sequence[np.random.Generator],
    block_size: int,
    data: CleanData,
    patch_size: int = 1,
) -> tuple[Draws, np.ndarray]:
    """Posterior, which positions are known, noise of the posterior and noise to begin from; and weights.

    Weights (B, N) of the positions that are learnt are those of `draw_known`.
    """
    assert rows.mean is not None
    assert rows.logvar is not None
    positions, channels = rows.mean.shape[1:]
    clean, weight = draw_known(rows, randoms, block_size, patch_size, data.partly_clean)
    return {
        "mean": rows.mean,
        "logvar": rows.logvar,
        "clean": clean,
        "noise": randomness.normal(randoms, positions, channels),
        "z1": randomness.normal(randoms, positions, channels),
        **drawn_pieces(rows, patch_size),
    }, weight


def begun_blocks(
    batch: Batch, to_prior: Callable[[Tensor], Tensor], data: CleanData
) -> tuple[Tensor, Tensor]:
    """z_0 (B, N, d) of a batch of `draw_blocks`, and the noise with z_0 where positions are known."""
    mean, logvar = wide(batch["mean"]), wide(batch["logvar"])
    z0 = to_prior(clean_latents(mean, logvar, batch["noise"], data.clean))
    return z0, torch.where(batch["clean"].unsqueeze(-1), z0, batch["z1"])


class Blocks:
    """A prior over all blocks of sequences at once, each behind its clean history, guided or not."""

    def __init__(
        self,
        prior: Prior,
        z0: Tensor,
        clean: Tensor,
        times: Tensor,
        guidance: float = 1.0,
        pieces: Tensor | None = None,
    ) -> None:
        """z0 (B, N, d) is the history; at `clean` (B, N) t is 0; times (count,), 0 first; pieces (B, N)."""
        self.prior, self._clean, self.guidance = prior, clean, guidance
        self._view = prior.teacher_forced(z0, prior.config.block_size, pieces=pieces)
        block = torch.arange(prior.config.block_size, device=z0.device)
        self._alone = prior.view(block, BlockCausal(len(block), len(block), z0.device))
        self._modulation = prior.level_modulation(times, clean.long())

    def __call__(
        self, z: Tensor, levels: Tensor, estimate: Tensor | None, guides: bool = False
    ) -> Tensor:
        """z (B, N, d) at the times of `levels` (N,) -> (B, N, out_dim), guided if asked."""
        prior = self.prior
        own = levels.expand(self._clean.shape).masked_fill(self._clean, 0)
        modulation = self._modulation._replace(levels=own)
        output = prior(z, modulation, self._view, estimate)
        if not guides:
            return output
        block = prior.config.block_size
        z, own = (part.unflatten(1, (-1, block)).flatten(0, 1) for part in (z, own))
        if estimate is not None:
            estimate = estimate.unflatten(1, (-1, block)).flatten(0, 1)
        unconditional = prior(z, modulation._replace(levels=own), self._alone, estimate)
        return guided(output, unconditional.view_as(output), self.guidance)


def merged(steps: Iterable[SolverStep], prior: Prior, temperature: float) -> SolverStep:
    """One step that does all of `steps`; its output is what a network would have to predict for it.

    That is the mean velocity, or the clean latent that it comes from, or the distribution over tokens whose
    mean code does; 0 where a position does not move.
    """
    done = list(steps)
    z, t, end, moved = done[0].z, done[0].t, done[-1].end, done[-1].moved
    if prior.config.prediction == "tokens":
        target, left = torch.zeros_like(wide(done[0].output)), torch.ones_like(t)
        for step in done:
            kept = 1 - (step.t - step.end) / step.t.clamp(min=T_MIN)
            logits = prior.token_logits(wide(step.output), step.z, step.t, temperature)
            target = kept * target + (1 - kept) * logits.softmax(-1)
            left = left * kept
        return SolverStep(z, target / (1 - left).clamp(min=TINY), moved, t, end)
    velocity = (wide(moved) - z) / (end - t).clamp(max=-TINY)
    return SolverStep(
        z, z - t * velocity if prior.config.prediction == "latent" else velocity, moved, t, end
    )
