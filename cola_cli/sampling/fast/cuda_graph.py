"""One block of every row on a GPU: fixed shapes, the whole solver loop in one CUDA graph.

Shapes are those of a bucket, see `memory`, masked to each row's own length. Everything a block needs is
copied into static buffers before the loop; inside it the host waits for nothing. The same code runs on a CPU,
where nothing is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.cost.sampling import length_bucket, row_bucket
from cola_cli.flow.guidance import guided
from cola_cli.models.config import PriorConfig
from cola_cli.models.prior import Prior
from cola_cli.sampling.cache import KeyValueCache
from cola_cli.sampling.denoise import Pins, Shown, Trajectory, rounded
from cola_cli.sampling.fast.fused_prior import FusedPrior
from cola_cli.sampling.fast.ragged_denoiser import RaggedDenoiser
from cola_cli.sampling.requests import Generating

WARM_UPS = 2  # runs before a capture: compilation and the libraries' workspaces


class BucketAttention:
    """Attention of [committed blocks | noisy blocks | blocks alone] over the first `keys` of the cache.

    `fill` (B,) counts the cached latents of the rows, `noisy` (B,) where their noisy blocks begin. Where
    nothing is pending both are equal, and what the commit wrote there is overwritten before it is read.
    """

    def __init__(
        self, cache: KeyValueCache, fill: Tensor, noisy: Tensor, keys: int, config: PriorConfig,
        guides: bool,
    ) -> None:  # fmt: skip
        block = config.block_size
        self._cache, self._keys, self._guides = cache, keys, guides
        self._rows = len(fill)
        steps = torch.arange(block, device=fill.device)
        self._starts = [(start[:, None] + steps)[:, None, :, None] for start in (fill, noisy)]
        own = steps // config.history_block * config.history_block + config.history_block
        ends = torch.cat((fill[:, None] + own, (noisy + block)[:, None].expand(-1, block)), 1)
        seen = torch.arange(keys, device=fill.device) < ends[..., None]  # (B, 2 block, keys)
        self._mask = seen.unsqueeze(1)  # (B, 1, 2 block, keys)
        self._block = block

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (entries, block, H, head_dim) -> the same shape; without commits, only noisy and alone."""
        rows, block = self._rows, self._block
        entries = len(q) // rows - (1 if self._guides else 0)  # 2 with commits, 1 without
        keys = self._cache.keys[layer][:rows, :, : self._keys]
        values = self._cache.values[layer][:rows, :, : self._keys]
        queries = []
        for part, start in enumerate(self._starts[2 - entries :]):
            own = slice(part * rows, (part + 1) * rows)
            new_k, new_v = k[own].transpose(1, 2), v[own].transpose(1, 2)  # (B, H, block, head_dim)
            keys.scatter_(2, start.expand_as(new_k), new_k)
            values.scatter_(2, start.expand_as(new_v), new_v)
            queries.append(q[own])
        together = torch.cat(queries, 1).transpose(1, 2)  # (B, H, entries * block, head_dim)
        mask = self._mask if entries == 2 else self._mask[:, :, block:]
        out = F.scaled_dot_product_attention(together, keys, values, attn_mask=mask)
        outs = list(out.transpose(1, 2).split(block, 1))
        if self._guides:
            alone = slice(entries * rows, None)
            q, k, v = (part[alone].transpose(1, 2) for part in (q, k, v))
            outs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))
        return torch.cat(outs)


class _Bucket:
    """The buffers of one bucket, and its loop, captured where there is a GPU."""

    def __init__(
        self, prior: Prior, fused: FusedPrior, cache: KeyValueCache, trajectory: Trajectory, rows: int,
        keys: int, pinned: bool, released: bool,
    ) -> None:  # fmt: skip
        self._prior = prior
        block, channels = fused.config.block_size, fused.config.latent_dim
        device = cache.device
        self._fused, self._cache, self._trajectory = fused, cache, trajectory
        self._rows, self._keys, self._released = rows, keys, released
        self.noise = torch.zeros(rows, block, channels, device=device)
        self.pending = torch.zeros_like(self.noise)
        self.fresh: Tensor | None = None  # what steps draw
        if trajectory.options.eta:
            steps = len(trajectory.grid) - 1
            self.fresh = torch.zeros(steps, rows, block, channels, device=device)
        self.scale = torch.ones(rows, 1, 1, device=device)  # of guidance
        self.counts = torch.zeros(4, rows, dtype=torch.int64, device=device)
        self.pins: Pins | None = None
        if pinned:
            where = torch.zeros(rows, block, 1, dtype=torch.bool, device=device)
            self.pins = Pins(where, torch.zeros_like(self.noise))
        self.run: Callable[[], Tensor] = self._loop
        if device.type == "cuda":
            self.run = self._captured()

    def _loop(self) -> Tensor:
        """The blocks (rows, block_size, d) from what the buffers hold."""
        fill, noisy, before, position = self.counts
        block, device = self.noise.shape[1], self.noise.device
        steps = torch.arange(block, device=device)
        starts = torch.stack((before, position, torch.zeros_like(position)))  # (3, rows)
        table = self._fused.rotation(starts.flatten()[:, None] + steps)
        table = table.unflatten(0, (3, -1))
        history = (noisy > 0)[:, None, None]
        attention = {
            guides: BucketAttention(
                self._cache, fill, noisy, self._keys, self._fused.config, guides
            )
            for guides in (False, True)
        }
        pins = self.pins if self._trajectory.clean_pins else None
        temperature = self._trajectory.options.head_temperature
        times = self._trajectory.network_times(device)

        def said(guides: bool, committed: Tensor) -> Tensor:
            own = self._cache.said[: self._rows]
            if len(committed):
                own.copy_(torch.where((noisy > fill).unsqueeze(1), committed, own))
            return F.pad(own, (0, 0, 0, self._rows if guides else 0))

        def velocity(z: Tensor, evaluation: int) -> Tensor:
            guides, commits = self._trajectory.guides(evaluation), evaluation == 0
            parts = [self.pending] if commits else []
            parts += [z, z] if guides else [z]
            clean = None
            if commits or pins:
                none = torch.zeros_like(self.noise[..., :1], dtype=torch.bool)
                held = none if pins is None else pins.where
                clean = torch.cat([~none] * commits + [held] * (len(parts) - commits))
            first = 0 if commits else 1
            output = self._fused(
                rounded(torch.cat(parts), self._released),
                evaluation,
                clean,
                table[first : first + len(parts)].flatten(0, 1),
                attention[guides],
                commits=self._rows if commits else 0,
                said=partial(said, guides),
            )
            outputs = output.split(self._rows)
            chosen = outputs[0]
            if guides:
                chosen = torch.where(history, guided(chosen, outputs[-1], self.scale), chosen)
            t = times[evaluation].view(1, -1, 1)
            return self._prior.to_velocity(chosen, z, t, temperature)

        return self._trajectory.follow([], self.noise, self.pins, velocity, fresh=self.fresh)

    def _captured(self) -> Callable[[], Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._loop()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self._loop()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class GraphDenoiser:
    """Denoises rows in fixed shapes; the slot of a row is its place. Not for partial repaint."""

    def __init__(self, eager: RaggedDenoiser, cache: KeyValueCache) -> None:
        """eager: whose prior, grid and options these are; it takes over while somebody watches."""
        self.trajectory = eager.trajectory
        self.shown: Shown | None = None
        self._eager, self._fused, self._cache = eager, eager.fused, cache
        self._block = eager.fused.config.block_size
        self.buckets: dict[tuple[int, int, bool], _Bucket] = {}
        self._storage = 0

    def reserve(self, slots: int, length: int) -> None:
        """Make room for so many rows of so many latents, rounded up to a bucket."""
        self._cache.reserve(row_bucket(slots), length_bucket(length))

    def denoise(self, rows: list[Generating], noise: Tensor) -> Tensor:
        """The rows' next blocks (rows, block_size, d) float32 from noise; commits what was pending."""
        if self.shown:
            self._eager.shown = self.shown
            return self._eager.denoise(rows, noise)
        slots = [row.slot for row in rows]
        longest = max(row.fill for row in rows) + 2 * self._block
        size, keys = row_bucket(max(slots) + 1), length_bucket(longest)
        self.reserve(size, keys)
        if self._storage != self._cache.keys[0].data_ptr():  # a graph holds addresses
            self.buckets.clear()
            self._storage = self._cache.keys[0].data_ptr()
        pinned = any(row.pins for row in rows)
        key = (size, keys, pinned)
        if key not in self.buckets:
            self.buckets[key] = _Bucket(
                self._eager.prior, self._fused, self._cache, self.trajectory, size, keys, pinned,
                self.trajectory.options.compat == "released",
            )  # fmt: skip
        bucket = self.buckets[key]
        self._fill(bucket, rows, slots, noise)
        z = bucket.run()
        for row in rows:
            row.fill += self._block if row.pending is not None else 0
            row.pending = None
        return z[slots].clone() if slots != list(range(size)) else z.clone()

    def _fill(
        self, bucket: _Bucket, rows: list[Generating], slots: list[int], noise: Tensor
    ) -> None:
        """Copy what the block needs into the bucket's buffers."""
        counts = torch.zeros(bucket.counts.shape, dtype=torch.int64)
        starts = torch.zeros(bucket.noise.shape)
        pending = torch.zeros_like(bucket.pending)
        scale = torch.ones(bucket.scale.shape)
        for row, slot, own in zip(rows, slots, noise, strict=True):
            waits = row.pending is not None
            noisy = row.fill + (self._block if waits else 0)
            before = row.position - (self._block if waits else 0)
            counts[:, slot] = torch.tensor([row.fill, noisy, before, row.position])
            starts[slot] = own
            scale[slot] = row.options.guidance
            if row.pending is not None:
                pending[slot] = row.pending
        bucket.counts.copy_(counts)
        bucket.noise.copy_(starts)
        bucket.scale.copy_(scale)
        bucket.pending.copy_(pending)
        drawn = self.trajectory.fresh_noise(rows, pending.device)
        if bucket.fresh is not None and drawn is not None:
            fresh = torch.zeros(bucket.fresh.shape)
            fresh[:, slots] = drawn
            bucket.fresh.copy_(fresh)
        if bucket.pins is not None:
            where = torch.zeros(bucket.pins.where.shape, dtype=torch.bool)
            known = torch.zeros_like(bucket.pins.latents)
            for row, slot in zip(rows, slots, strict=True):
                where[slot, : row.pins] = True
                known[slot, : row.pins] = row.pinned[: row.pins]
            bucket.pins.where.copy_(where)
            bucket.pins.latents.copy_(known)
