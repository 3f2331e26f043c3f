"""One block of every row from noise to latents: the solver's loop, and the plain way to take it.

`PlainDenoiser` is the method as one would write it down, a row at a time; it serves every network on every
device. `sampling/fast/` has quicker ones, which must give the same latents.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cola_cli.errors import UsageError
from cola_cli.flow.guidance import guided, is_guided
from cola_cli.flow.path import (
    further_time,
    interpolate,
    position_times,
    renoise,
    to_velocity,
)
from cola_cli.flow.solvers import (
    chosen_grid,
    evaluation_times,
    evaluations_per_step,
    step,
    uniform_grid,
)
from cola_cli.models.attention import BlockCausal, block_causal_mask
from cola_cli.models.config import PriorConfig
from cola_cli.models.prior import Prior, Said
from cola_cli.sampling.cache import KeyValueCache, OwnBlockAttention
from cola_cli.sampling.noise import REPAINT, STEP, generator
from cola_cli.sampling.requests import Generating
from cola_cli.settings.sample import SamplingOptions

# A guess from noise stays the same too, until the position moves: at 0.9 a tenth of the demo model's
# sentences was lost, without a threshold nine tenths (docs/few-steps.md).
SURE = 0.99
# velocity(z, evaluation) of the rows' blocks z (rows, block_size, d)
Velocity = Callable[[Tensor, int], Tensor]
# shown(t, z): called with the blocks as they are before each step
Shown = Callable[[float, Tensor], None]


class Estimates:
    """The clean estimates of rows' blocks, carried from pass to pass.

    With `settle` a row whose estimate has read as the same tokens for so many passes after another, all with
    a probability above SURE, moves no more: it keeps that estimate and needs no further pass.
    """

    def __init__(self, prior: Prior, options: SamplingOptions, like: Tensor) -> None:
        """like (rows, block_size, d): the blocks."""
        self.moving = list(range(len(like)))
        self.clean = torch.zeros_like(like)
        self._prior, self._temperature = prior, options.head_temperature
        self._settle = options.settle
        self._tokens = torch.full(like.shape[:2], -1, device=like.device)
        self._same = torch.zeros(len(like), dtype=torch.int64, device=like.device)

    def velocity(self, output: Tensor | None, z: Tensor, t: Tensor) -> Tensor:
        """dz/dt of all blocks z (rows, block_size, d) from the network's output for the moving ones.

        t is broadcast to (rows, block_size, 1); output is None where no row moves.
        """
        prior, moving = self._prior, self.moving
        if not self._settle:
            assert output is not None
            if prior.config.self_conditioning:
                self.clean = prior.clean_estimate(output, z, t, self._temperature)
            return prior.to_velocity(output, z, t, self._temperature)
        if output is not None:
            self.clean[moving] = prior.clean_estimate(output, z[moving], t, self._temperature)
            logits = prior.token_logits(output, z[moving], t)
            chances, tokens = logits.softmax(-1).max(-1)
            same = ((tokens == self._tokens[moving]) & (chances > SURE)).all(1)
            self._tokens[moving] = tokens
            self._same[moving] = torch.where(same, self._same[moving] + 1, 0)
            self.moving = [i for i in moving if self._same[i] < self._settle]
        return to_velocity(self.clean, z, t)


@dataclass(frozen=True)
class Pins:
    """Prompt latents inside the first block: where (rows, block_size, 1) and which (rows, block_size, d)."""

    where: Tensor
    latents: Tensor


class Trajectory:
    """The way of a block through the times of the grid."""

    def __init__(self, options: SamplingOptions, config: PriorConfig) -> None:
        """Raises UsageError for options that do not go with a prior of this config."""
        config.require_guidance(options.guidance)
        self.options = options
        self.grid = chosen_grid(options.steps, options.grid)
        self.times = evaluation_times(self.grid, options.solver)
        self.clean_pins = options.first_block == "clean-repaint"
        self.block = config.block_size
        # a chain's positions move in groups, one group after another
        self._groups = config.passes if config.chain else config.block_size
        self.stagger = config.passes - 1.0 if config.chain else config.stagger
        self.channels = config.latent_dim
        self._network_times = functools.cache(self._times_on)
        self._path = functools.cache(self._path_on)
        if config.chain and (self.grid != uniform_grid(config.passes) or options.solver != "euler"):
            raise UsageError(
                f"this prior is distilled for passes={config.passes} over a block, by even Euler steps.",
                f"Leave steps at {config.passes}, the solver at euler and grid empty, or name its teacher.",
            )
        if config.prediction != "velocity" and options.solver == "heun":
            raise UsageError(
                f"heun needs the velocity at t = 0; a prior that predicts {config.prediction} has none.",
                "Choose euler or midpoint.",
            )
        if options.settle and (config.prediction != "tokens" or config.chain):
            none = f"a prior that predicts {config.prediction} has none"
            what = "a student decides a token in one pass" if config.chain else none
            raise UsageError(
                f"settle looks at the tokens of a token head from pass to pass; {what}.",
                "Leave settle at 0.",
            )
        if self.stagger and options.first_block == "partial-repaint":
            raise UsageError(
                "partial repaint needs blocks whose positions share one time; this prior's are staggered.",
                "Choose another --first-block.",
            )

    def guides(self, evaluation: int) -> bool:
        """Whether the unconditional velocity counts at an evaluation."""
        options = self.options
        return is_guided(self.times[evaluation], options.guidance, options.guidance_interval)

    def network_times(self, device: torch.device) -> Tensor:
        """The times of all evaluations as the network is given them, (evaluations,), or (evaluations, block)
        of staggered positions; the released loop feeds 1000 t in bf16."""
        return self._network_times(device)

    def _times_on(self, device: torch.device) -> Tensor:
        if self.stagger:
            grid = list(self._positions(torch.tensor(self.grid, device=device)))
            times = torch.stack(evaluation_times(grid, self.options.solver))
        else:
            times = torch.tensor(self.times, device=device)
        released = self.options.compat == "released"
        return (times * 1000).bfloat16().float() / 1000 if released else times

    def _positions(self, time: Tensor) -> Tensor:
        """The times of a block's staggered positions from the block's own."""
        times = position_times(time, self.stagger, self._groups)
        return times.repeat_interleave(self.block // self._groups, -1)

    def _path_on(self, device: torch.device) -> list[tuple[Any, Any, Any]]:
        """Where each step begins, where it ends, and with eta how far it goes before it comes back.

        Numbers, or tensors (block, 1) of staggered positions and () with eta. They are made once, as a graph
        that is being captured on a GPU cannot copy them there.
        """
        grid: Any = self.grid
        if self.stagger:
            grid = [self._positions(t).unsqueeze(-1) for t in torch.tensor(grid, device=device)]
        elif self.options.eta:
            grid = list(torch.tensor(grid, device=device))
        steps = itertools.pairwise(grid)
        if not self.options.eta:
            return [(start, stop, None) for start, stop in steps]
        eta = self.options.eta
        return [(start, stop, further_time(start, stop, eta)) for start, stop in steps]

    def fresh_noise(self, rows: list[Generating], device: torch.device) -> Tensor | None:
        """What the steps of the rows' next blocks draw, (steps, rows, block_size, d); None without eta."""
        if not self.options.eta:
            return None
        shape = (len(self.grid) - 1, self.block, self.channels)
        return torch.stack([_drawn(row, STEP, shape) for row in rows], 1).to(device)

    def follow(
        self,
        rows: list[Generating],
        start: Tensor,
        pins: Pins | None,
        velocity: Velocity,
        shown: Shown | None = None,
        fresh: Tensor | None = None,
    ) -> Tensor:
        """The latents at t = 0 of the rows' blocks that are `start` (rows, block_size, d) at t = 1.

        fresh: see `fresh_noise`.
        """
        z = start
        for index, (t, end) in enumerate(zip(self.grid, self.grid[1:], strict=False)):
            if shown:
                shown(t, z)
            if pins is None or self.clean_pins:
                if pins is not None:
                    z = torch.where(pins.where, pins.latents, z)
                z = self._step(z, index, velocity, fresh)
            else:
                for repeat in self._repaints(index):
                    if repeat >= 0:
                        known = interpolate(pins.latents, start, torch.tensor(t))
                        z = torch.where(pins.where, known, z)
                    moved = step(velocity, z, t, end, index, "euler")
                    if repeat > 0:  # back to t; rows without pins wait for the last execution
                        purpose, shape = f"{REPAINT}/{index}/{repeat}", start.shape[1:]
                        drawn = torch.stack([_drawn(row, purpose, shape) for row in rows])
                        again = renoise(moved, end, t, drawn.to(start))
                        moved = torch.where(pins.where.any(1, keepdim=True), again, z)
                    z = moved
        return torch.where(pins.where, pins.latents, z) if pins and self.clean_pins else z

    def _step(self, z: Tensor, index: int, velocity: Velocity, fresh: Tensor | None) -> Tensor:
        """The blocks after a step of the grid; with eta it goes further, and back by fresh noise."""
        solver = self.options.solver
        start, stop, further = self._path(z.device)[index]
        if fresh is None:
            evaluation = index * evaluations_per_step(solver)
            return step(velocity, z, start, stop, evaluation, solver)
        moved = step(velocity, z, start, further, index, solver)
        return torch.where(start > stop, renoise(moved, further, stop, fresh[index]), moved)

    def _repaints(self, index: int) -> range:
        """The executions of a step under partial repaint, counted down to 0; -1 is one without repaint."""
        early = index < self.options.repaint_fraction * (len(self.grid) - 1)
        return range(self.options.repaint_times - 1, -1, -1) if early else range(-1, -2, -1)


def _drawn(row: Generating, purpose: str, shape: Sequence[int]) -> Tensor:
    """Noise of the row's own seed, item and block."""
    source = generator(row.options.seed, row.request.item, len(row.latents), purpose)
    return torch.randn(tuple(shape), generator=source)


def find_pins(
    rows: list[Generating], block: int, channels: int, device: torch.device
) -> Pins | None:
    """The pins of the rows' next blocks; None without any."""
    if not any(row.pins for row in rows):
        return None
    where = torch.zeros(len(rows), block, 1, dtype=torch.bool, device=device)
    latents = torch.zeros(len(rows), block, channels, device=device)
    for index, row in enumerate(rows):
        where[index, : row.pins] = True
        latents[index, : row.pins] = row.pinned[: row.pins]
    return Pins(where, latents)


class Denoiser(Protocol):
    """What the engine asks for a block."""

    trajectory: Trajectory
    shown: Shown | None

    def reserve(self, slots: int, length: int) -> None:
        """Make room for so many rows of so many latents."""

    def denoise(self, rows: list[Generating], noise: Tensor) -> Tensor:
        """The rows' next blocks (rows, block_size, d) float32 from noise; commits what was pending."""


class PlainDenoiser:
    """Velocities of the prior, a row at a time: the conditional one behind the cached history, the
    unconditional one of the block alone."""

    def __init__(self, prior: Prior, cache: KeyValueCache, options: SamplingOptions) -> None:
        self.trajectory = Trajectory(options, prior.config)
        self.shown: Shown | None = None
        self._prior, self._cache = prior, cache
        self._released = options.compat == "released"
        device = prior.latent_in.weight.device
        self._times = self.trajectory.network_times(device)
        self._steps = torch.arange(prior.config.block_size, device=device)
        self._shape = (prior.config.block_size, prior.config.latent_dim)

    def reserve(self, slots: int, length: int) -> None:
        """Make room for so many rows of so many latents."""
        self._cache.reserve(slots, length)

    def denoise(self, rows: list[Generating], noise: Tensor) -> Tensor:
        """The rows' next blocks (rows, block_size, d) float32 from noise; commits what was pending."""
        for row in rows:
            self._commit(row)
        noise = noise.to(self._steps.device)
        pins = find_pins(rows, *self._shape, noise.device)

        estimates = Estimates(self._prior, self.trajectory.options, noise)

        def velocity(z: Tensor, evaluation: int) -> Tensor:
            each = [
                self._output(rows[i], z[i : i + 1], evaluation, estimates.clean[i : i + 1])
                for i in estimates.moving
            ]
            t = self._times[evaluation].view(1, -1, 1)
            return estimates.velocity(torch.cat(each) if each else None, z, t)

        fresh = self.trajectory.fresh_noise(rows, noise.device)
        return self.trajectory.follow(rows, noise, pins, velocity, self.shown, fresh)

    def _commit(self, row: Generating) -> None:
        """Add the block that was generated last to the history."""
        if row.pending is None:
            return
        block, mask = len(self._steps), None
        if self._prior.config.causal_history:
            mask = block_causal_mask(block, row.fill + block, 1, self._steps.device)
        attend = OwnBlockAttention(self._cache, row.slot, row.fill, mask)
        view = self._prior.view(row.position - block + self._steps, attend)
        zero = self._prior.modulation(self._times.new_zeros(1))
        z = rounded(row.pending[None], self._released)
        hidden, _ = self._prior.remember(z, zero, view)
        if hidden is not None:
            self._cache.said[row.slot] = hidden[0, -1]
        row.fill += len(self._steps)
        row.pending = None

    def _output(self, row: Generating, z: Tensor, evaluation: int, estimate: Tensor) -> Tensor:
        """The network's guided output (1, block_size, out_dim) for one row's block z."""
        prior = self._prior
        t = self._times[evaluation].expand(1, len(self._steps)).clone()
        if self.trajectory.clean_pins:
            t[:, : row.pins] = 0
        modulation, z = prior.modulation(t), rounded(z, self._released)
        own = OwnBlockAttention(self._cache, row.slot, row.fill)
        view = prior.view(row.position + self._steps, own)
        if prior.config.evidence:
            said = self._cache.said[row.slot].view(1, 1, -1)
            view = view._replace(said=Said(said, len(self._steps)))
        output = prior(z, modulation, view, estimate).float()
        if row.fill and self.trajectory.guides(evaluation):
            alone = BlockCausal(len(self._steps), len(self._steps), z.device)
            view = view._replace(attend=alone, said=None)
            unconditional = prior(z, modulation, view, estimate).float()
            output = guided(output, unconditional, row.options.guidance)
        return output


def guidance_of(rows: list[Generating], device: torch.device) -> float | Tensor:
    """The rows' scale of guidance, or (rows, 1, 1) where they differ."""
    scales = [row.options.guidance for row in rows]
    if len(set(scales)) == 1:
        return scales[0]
    return torch.tensor(scales, device=device).view(-1, 1, 1)


def rounded(z: Tensor, released: bool) -> Tensor:
    """What the prior is given for z: the released loop feeds it latents in bf16."""
    return z.bfloat16().float() if released else z
