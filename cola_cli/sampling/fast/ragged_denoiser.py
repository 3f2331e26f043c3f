"""One block of every row, of any lengths, without padding: rows of equal length share an attention call.

Conditional and unconditional blocks go through the prior in one pass, and the clean block before is
committed to the cache in the first pass of the next one. On a CPU parts of the batch go side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.flow.guidance import guided
from cola_cli.models.attention import block_causal_mask
from cola_cli.models.prior import Prior
from cola_cli.sampling.cache import KeyValueCache, Stretch, stretches
from cola_cli.sampling.denoise import (
    Estimates,
    Pins,
    Shown,
    Trajectory,
    find_pins,
    guidance_of,
    rounded,
)
from cola_cli.sampling.fast.cpu_attention import BlockAttention
from cola_cli.sampling.fast.fused_prior import FusedPrior, repeated
from cola_cli.sampling.fast.packed import packed
from cola_cli.sampling.fast.side_by_side import SideBySide
from cola_cli.sampling.requests import Generating
from cola_cli.settings.sample import SamplingOptions


class RaggedAttention:
    """Attention of one pass of the prior: entries [committed blocks | noisy blocks | blocks alone].

    A committed block is stored for good, a noisy one behind it (the next pass overwrites it). A block alone,
    the unconditional one, sees only itself.
    """

    def __init__(
        self, cache: KeyValueCache, commits: list[Stretch], noisy: list[Stretch], alone: slice,
        causal: int,
    ) -> None:  # fmt: skip
        """causal: positions of a committed block if each sees none after it; 0: all see all."""
        self._cache, self._alone = cache, alone
        masks = {
            own.fill: block_causal_mask(causal, own.fill + causal, 1, cache.device)
            for own in commits
            if causal
        }
        self._cached = [(own, masks.get(own.fill)) for own in commits]
        self._cached += [(own, None) for own in noisy]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (entries, block, H, head_dim) -> the same shape."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        pieces = []
        for stretch, mask in self._cached:
            entries = slice(stretch.start, stretch.stop)
            keys, values = self._cache.store(layer, stretch, k[entries], v[entries])
            pieces.append(F.scaled_dot_product_attention(q[entries], keys, values, attn_mask=mask))
        alone = self._alone
        if alone.stop > alone.start:
            pieces.append(F.scaled_dot_product_attention(q[alone], k[alone], v[alone]))
        # the kernels write (entries, block, H, head_dim), so that only joining copies
        outs = [piece.transpose(1, 2) for piece in pieces]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


class CompiledAttention:
    """What `RaggedAttention` does and, before it, norms and rotation, by one compiled function."""

    def __init__(
        self,
        kernel: BlockAttention,
        norms: Sequence[tuple[Tensor, Tensor]],
        cache: KeyValueCache,
        slots: list[int],
        fills: list[int],
        turns: Tensor,
        causal: int,
    ) -> None:
        """norms: (query, key) per layer. slots, fills: of the cached entries; the remaining entries attend
        only to themselves. turns: rotary table of all entries. In the first `causal` entries a position sees
        none after it."""
        self._kernel, self._norms, self._cache, self._turns = kernel, norms, cache, turns
        self._causal = causal
        entries, block, _, half = turns.shape
        alone = entries - len(slots)
        self._slots = torch.tensor([*slots, *(-1 - place for place in range(alone))])
        self._fills = torch.tensor([*fills, *[0] * alone])
        self._alone = torch.empty(alone, cache.keys[0].shape[1], 2, block, 2 * half)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv (entries, block, 3, H, head_dim) -> (entries, block, H, head_dim)."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        return self._kernel(
            qkv, *self._norms[layer], self._turns, keys, values, self._alone,
            self._slots, self._fills, self._causal,
        )  # fmt: skip


@dataclass(frozen=True)
class _Pass:
    """What a pass of the prior needs besides z: which entries it has, where, and who sees whom."""

    commits: list[Generating]
    alone: list[int]  # rows that also have an unconditional entry
    again: Tensor | None  # the places of their conditional entries
    table: Tensor | None  # of the committed and noisy entries; none where `attend` has it
    attend: RaggedAttention | CompiledAttention
    clean: Tensor | None  # (committed + noisy, block_size or 1, 1): positions at t = 0


class RaggedDenoiser:
    """Denoises rows of any lengths without padding."""

    def __init__(self, prior: Prior, cache: KeyValueCache, options: SamplingOptions) -> None:
        self.trajectory = Trajectory(options, prior.config)
        self._released = options.compat == "released"
        self._block, self._channels = prior.config.block_size, prior.config.latent_dim
        self._cache = cache
        self._device = prior.latent_in.weight.device
        self._times = self.trajectory.network_times(self._device)
        self.fused = FusedPrior(prior, self._times)
        self.prior = packed(prior, "latent_out", "chain") if prior.config.chain else prior
        self.shown: Shown | None = None
        self._side_by_side = SideBySide(
            sum(weight.numel() for weight in prior.blocks[0].parameters()),
            self._block * (1 if options.guidance == 1 else 2),
        )

    def reserve(self, slots: int, length: int) -> None:
        """Make room for so many rows of so many latents."""
        self._cache.reserve(slots, length)

    def denoise(self, rows: list[Generating], noise: Tensor) -> Tensor:
        """The rows' next blocks (rows, block_size, d) float32 from noise; commits what was pending."""
        if self.shown or self._device.type != "cpu":
            return self._denoise(rows, noise)
        return self._side_by_side.run(self._denoise, rows, noise)

    def _denoise(self, rows: list[Generating], noise: Tensor) -> Tensor:
        noise = noise.to(self._device)
        pins = find_pins(rows, self._block, self._channels, self._device)
        estimates = Estimates(self.prior, self.trajectory.options, noise)
        passes: dict[tuple[bool, bool, int], _Pass] = {}

        def velocity(z: Tensor, evaluation: int) -> Tensor:
            guides, moving = self.trajectory.guides(evaluation), estimates.moving
            output = None
            if moving:
                whole = len(moving) == len(rows)
                chosen = rows if whole else [rows[i] for i in moving]
                # rows that have settled do not come back: their number says which they are
                key = (any(row.pending is not None for row in chosen), guides, len(moving))
                if key not in passes:
                    own = pins
                    if pins is not None and not whole:
                        own = Pins(pins.where[moving], pins.latents[moving])
                    passes[key] = self._pass(chosen, guides, own)
                at = z if whole else z[moving]
                output = self._output(chosen, at, evaluation, passes[key])
            return estimates.velocity(output, z, self._times[evaluation].view(1, -1, 1))

        fresh = self.trajectory.fresh_noise(rows, self._device)
        return self.trajectory.follow(rows, noise, pins, velocity, self.shown, fresh)

    def _pass(self, rows: list[Generating], guides: bool, pins: Pins | None) -> _Pass:
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
        turns, causal = self.fused.rotation(positions), self.prior.config.causal_history
        attend: RaggedAttention | CompiledAttention
        if self.fused.kernel is None:
            attend = RaggedAttention(
                self._cache,
                stretches(clean_slots, clean_fills),
                stretches(slots, fills, start=count),
                slice(len(starts), len(starts) + len(alone)),
                block if causal else 0,
            )
        else:
            attend = CompiledAttention(
                self.fused.kernel,
                self.fused.norms,
                self._cache,
                clean_slots + slots,
                clean_fills + fills,
                turns if again is None else repeated(turns, again),
                count if causal else 0,
            )
        pinned = pins is not None and self.trajectory.clean_pins
        # whole entries unless there are pins: modulations are made of few rows then
        size = block if pinned else 1
        clean = torch.zeros(len(starts), size, 1, dtype=torch.bool, device=self._device)
        clean[:count] = True
        if pins and pinned:
            clean[count:] = pins.where
        any_clean = clean if commits or pinned else None
        table = turns if self.fused.kernel is None else None
        return _Pass(commits, alone, again, table, attend, any_clean)

    def _output(self, rows: list[Generating], z: Tensor, evaluation: int, entries: _Pass) -> Tensor:
        """The network's guided output for the rows' blocks; commits what is pending on the way."""
        committed = [row.pending for row in entries.commits if row.pending is not None]
        x = torch.cat((torch.stack(committed), z)) if committed else z
        output = self.fused(
            rounded(x, self._released),
            evaluation,
            entries.clean,
            entries.table,
            entries.attend,
            entries.again,
            len(committed),
            partial(self._said, rows, entries),
        )
        for row in entries.commits:
            row.fill += self._block
            row.pending = None
        return self._guided(output, rows, entries.alone)

    def _said(self, rows: list[Generating], entries: _Pass, committed: Tensor) -> Tensor:
        """What was said of the rows' blocks, and nothing of blocks alone; keeps what is `committed`."""
        said = self._cache.said
        said[[row.slot for row in entries.commits]] = committed
        return F.pad(said[[row.slot for row in rows]], (0, 0, 0, len(entries.alone)))

    def _guided(self, output: Tensor, rows: list[Generating], alone: list[int]) -> Tensor:
        """The network's output of the rows, guided where a row has an unconditional entry behind them."""
        conditional = output[: len(rows)]
        if not alone:
            return conditional
        unconditional = output[len(rows) :]
        scale = guidance_of([rows[i] for i in alone], self._device)
        if len(alone) == len(rows):
            return guided(conditional, unconditional, scale)
        conditional = conditional.clone()
        conditional[alone] = guided(conditional[alone], unconditional, scale)
        return conditional
