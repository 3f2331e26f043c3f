"""One block of every row from noise to latents: the solver's loop, and its velocities without padding.

Conditional and unconditional blocks go through the prior in one pass, and the clean block before is
committed to the cache in the first pass of the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cola_cli.flow.guidance import guided, is_guided
from cola_cli.flow.path import interpolate, renoise
from cola_cli.flow.solvers import chosen_grid, evaluation_times, evaluations_per_step, step
from cola_cli.models.prior import Prior
from cola_cli.sampling.cache import KeyValueCache, NativeAttention, RunAttention, runs
from cola_cli.sampling.fast.fused_prior import LeanPrior, repeated
from cola_cli.sampling.fast.side_by_side import Streams
from cola_cli.sampling.noise import REPAINT, generator
from cola_cli.sampling.rows import Row
from cola_cli.settings.sample import SamplingOptions

# velocity(z, evaluation) of the rows' blocks z (rows, block_size, d)
Velocity = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Pins:
    """Prompt latents inside the first block: where (rows, block_size, 1) and which (rows, block_size, d)."""

    where: Tensor
    latents: Tensor


class Trajectory:
    """The way of a block through the times of the grid."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self.grid = chosen_grid(options.steps, options.grid)
        self.times = evaluation_times(self.grid, options.solver)
        self.clean_pins = options.first_block == "clean-repaint"

    def guides(self, evaluation: int) -> bool:
        """Whether the unconditional velocity counts at an evaluation."""
        options = self.options
        return is_guided(self.times[evaluation], options.guidance, options.guidance_interval)

    def follow(
        self,
        start: Tensor,
        pins: Pins | None,
        velocity: Velocity,
        fresh_noise: Callable[[int, int], Tensor] | None = None,
        shown: Callable[[float, Tensor], None] | None = None,
    ) -> Tensor:
        """The latents at t = 0 of blocks that are `start` (rows, block_size, d) at t = 1.

        fresh_noise(step, repeat) serves partial repaint; shown(t, z) is called before each step.
        """
        z, solver = start, self.options.solver
        stride = evaluations_per_step(solver)
        for index, (t, end) in enumerate(zip(self.grid, self.grid[1:], strict=False)):
            if shown:
                shown(t, z)
            if pins is None:
                z = step(velocity, z, t, end, index * stride, solver)
            elif self.clean_pins:
                z = torch.where(pins.where, pins.latents, z)
                z = step(velocity, z, t, end, index * stride, solver)
            else:
                for repeat in self._repaints(index):
                    if repeat >= 0:
                        known = interpolate(pins.latents, start, torch.tensor(t))
                        z = torch.where(pins.where, known, z)
                    z = step(velocity, z, t, end, index * stride, "euler")
                    if repeat > 0 and fresh_noise is not None:
                        z = renoise(z, end, t, fresh_noise(index, repeat))
        return torch.where(pins.where, pins.latents, z) if pins and self.clean_pins else z

    def _repaints(self, index: int) -> range:
        """The executions of a step under partial repaint, counted down to 0; -1 is one without repaint."""
        early = index < self.options.repaint_fraction * (len(self.grid) - 1)
        return range(self.options.repaint_times - 1, -1, -1) if early else range(-1, -2, -1)


def find_pins(rows: list[Row], block: int, channels: int, device: torch.device) -> Pins | None:
    """The pins of the rows' next blocks; None where there are none."""
    if not any(row.pins for row in rows):
        return None
    where = torch.zeros(len(rows), block, 1, dtype=torch.bool, device=device)
    latents = torch.zeros(len(rows), block, channels, device=device)
    for index, row in enumerate(rows):
        where[index, : row.pins] = True
        latents[index, : row.pins] = row.pinned[: row.pins]
    return Pins(where, latents)


@dataclass(frozen=True)
class _Pass:
    """What a pass of the prior needs besides z: which entries it has, where, and who sees whom."""

    commits: list[Row]
    alone: list[int]  # rows that also have an unconditional entry
    again: Tensor | None  # the places of their conditional entries
    table: Tensor | None  # of the committed and noisy entries; none where `attend` has it
    attend: RunAttention | NativeAttention
    clean: Tensor | None  # (committed + noisy, block_size, 1): positions at t = 0


class RunDenoiser:
    """Denoises rows of any lengths without padding: rows of equal length share an attention call."""

    def __init__(self, prior: Prior, cache: KeyValueCache, options: SamplingOptions) -> None:
        self.trajectory = Trajectory(options)
        self._released = options.compat == "released"
        self._block, self._channels = prior.config.block_size, prior.config.latent_dim
        self._cache = cache
        self._device = prior.latent_in.weight.device
        times = torch.tensor(self.trajectory.times, device=self._device)
        if self._released:  # the released loop feeds timesteps of 0 to 1000 in bf16
            times = (times * 1000).bfloat16().float() / 1000
        self.lean = LeanPrior(prior, times)
        # called with t and the blocks as they are, before each step
        self.shown: Callable[[float, Tensor], None] | None = None
        self._streams = Streams()

    def denoise(self, rows: list[Row], noise: Tensor) -> Tensor:
        """The rows' next blocks (rows, block_size, d) float32 from noise; commits what was pending."""
        if self.shown or self._device.type != "cpu":
            return self._denoise(rows, noise)
        return self._streams.run(self._denoise, rows, noise)

    def _denoise(self, rows: list[Row], noise: Tensor) -> Tensor:
        pins = find_pins(rows, self._block, self._channels, self._device)
        passes: dict[tuple[bool, bool], _Pass] = {}

        def velocity(z: Tensor, evaluation: int) -> Tensor:
            guides = self.trajectory.guides(evaluation)
            key = (any(row.pending is not None for row in rows), guides)
            if key not in passes:
                passes[key] = self._pass(rows, guides, pins)
            return self._velocity(rows, z, evaluation, passes[key])

        def fresh_noise(index: int, repeat: int) -> Tensor:
            return self._fresh_noise(rows, index, repeat)

        return self.trajectory.follow(
            noise.to(self._device), pins, velocity, fresh_noise, self.shown
        )

    def _pass(self, rows: list[Row], guides: bool, pins: Pins | None) -> _Pass:
        block = self._block
        commits = [row for row in rows if row.pending is not None]
        fills = [row.fill + (block if row.pending is not None else 0) for row in rows]
        alone = [index for index, fill in enumerate(fills) if guides and fill]
        starts = [row.position - block for row in commits] + [row.position for row in rows]
        positions = torch.tensor(starts, device=self._device).unsqueeze(1)
        positions = positions + torch.arange(block, device=self._device)  # (entries, block)
        count = len(commits)
        again = torch.tensor(alone, device=self._device) + count if alone else None
        clean_slots, clean_fills = [row.slot for row in commits], [row.fill for row in commits]
        slots = [row.slot for row in rows]
        turns = self.lean.rotation(positions)
        attend: RunAttention | NativeAttention
        if self.lean.kernel is None:
            attend = RunAttention(
                self._cache,
                runs(clean_slots, clean_fills),
                runs(slots, fills, start=count),
                slice(len(starts), len(starts) + len(alone)),
            )
        else:
            attend = NativeAttention(
                self.lean.kernel,
                self.lean.norms,
                self._cache,
                clean_slots + slots,
                clean_fills + fills,
                turns if again is None else repeated(turns, again),
            )
        clean = torch.zeros(len(starts), block, 1, dtype=torch.bool, device=self._device)
        clean[:count] = True
        pinned = pins is not None and self.trajectory.clean_pins
        if pins and pinned:
            clean[count:] = pins.where
        any_clean = clean if commits or pinned else None
        table = turns if self.lean.kernel is None else None
        return _Pass(commits, alone, again, table, attend, any_clean)

    def _velocity(self, rows: list[Row], z: Tensor, evaluation: int, entries: _Pass) -> Tensor:
        """The guided velocity of the rows' blocks; commits what is pending on the way."""
        committed = [row.pending for row in entries.commits if row.pending is not None]
        x = torch.cat((torch.stack(committed), z)) if committed else z
        v = self.lean(
            rounded(x, self._released),
            evaluation,
            entries.clean,
            entries.table,
            entries.attend,
            entries.again,
        )
        for row in entries.commits:
            row.fill += self._block
            row.pending = None
        conditional = v[len(committed) : len(committed) + len(rows)]
        if not entries.alone:
            return conditional
        unconditional = v[len(committed) + len(rows) :]
        scale = self.trajectory.options.guidance
        if len(entries.alone) == len(rows):
            return guided(conditional, unconditional, scale)
        conditional = conditional.clone()
        conditional[entries.alone] = guided(conditional[entries.alone], unconditional, scale)
        return conditional

    def _fresh_noise(self, rows: list[Row], index: int, repeat: int) -> Tensor:
        shape, seed = (self._block, self._channels), self.trajectory.options.seed
        purpose = f"{REPAINT}/{index}/{repeat}"
        drawn = [
            torch.randn(shape, generator=generator(seed, row.request.item, 0, purpose))
            for row in rows
        ]
        return torch.stack(drawn).to(self._device)


def rounded(z: Tensor, released: bool) -> Tensor:
    """What the prior is given for z: the released loop feeds it latents in bf16."""
    return z.bfloat16().float() if released else z
