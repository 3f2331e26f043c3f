"""Block-by-block generation: the released sampler's mathematics with its waste removed.

For each block: noise, a few solver steps of the prior given the clean history, one decoder pass, a token for
every position. Conditional and unconditional blocks go through the prior in one pass, the clean block is
committed to the cache in the first pass of the next one, and rows join and leave at block boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

import torch
from torch import Tensor

from cola_cli.flow.guidance import guided, is_guided
from cola_cli.flow.path import interpolate, renoise
from cola_cli.flow.solvers import evaluation_times, evaluations_per_step, step, uniform_grid
from cola_cli.models.prior import Modulation, Prior
from cola_cli.models.rotary import Rotation
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling.cache import BlockAttention, CausalAttention, KeyValueCache, runs
from cola_cli.sampling.noise import REPAINT, TOKENS, block_noise, generator
from cola_cli.sampling.options import SamplingOptions
from cola_cli.sampling.tokens import GREEDY_BELOW, choose, penalised


@dataclass(frozen=True)
class Request:
    """One prompt. `item` seeds its random numbers; `noise` (blocks, block_size, d) replaces them."""

    item: int
    prompt: Sequence[int]
    noise: Tensor | None = None


@dataclass(frozen=True)
class Generation:
    """`ids`: the new tokens; `latents` (blocks, block_size, d): every generated block, pinned ones included
    (none from a baseline).

    finish: `stop` (an end token), `length` (the budget) or `running` (more blocks follow). `text` is set
    where a tokenizer is at hand.
    """

    ids: list[int]
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    finish: str = "length"
    text: str | None = None


@dataclass
class _Row:
    """A prompt being continued."""

    request: Request
    slot: int
    prefix: Tensor  # (n, d) prompt latents before the first block
    pinned: Tensor  # (k, d) prompt latents at the front of the first block
    position: int  # of the next block, in the prior
    trim: int  # prompt tokens at the front of the first block
    blocks: int  # to generate at most
    fill: int = 0  # latents in the prior's cache
    decoded: int = 0  # latents in the decoder's cache
    pending: Tensor | None = None  # (block_size, d) generated, not yet committed
    ids: list[int] = field(default_factory=list)  # of all generated blocks, prompt part included
    latents: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Pass:
    """What a pass of the prior needs besides z: which entries it has, where, and who sees whom."""

    commits: list[_Row]
    alone: list[int]  # rows that also have an unconditional entry
    table: Rotation
    attend: BlockAttention
    clean: Tensor  # (m,) places among the positions of all entries that are at t = 0


@dataclass(frozen=True)
class _Pins:
    """Prompt latents inside the first block: where (rows, block_size, 1) and which (rows, block_size, d)."""

    where: Tensor
    latents: Tensor


class Engine:
    """Continues prompts with a Text VAE and a prior, up to `batch_size` at a time.

    What a prompt yields depends on its item number, the options and the models, never on the batch.
    """

    def __init__(
        self,
        vae: TextVAE,
        prior: Prior,
        options: SamplingOptions,
        batch_size: int = 64,
        pad_id: int | None = None,
    ) -> None:
        self.vae, self.prior, self.options = vae, prior, options
        self.batch_size = batch_size
        self.pad_id = vae.config.vocab_size - 1 if pad_id is None else pad_id
        self.device = prior.latent_in.weight.device
        self._released = options.compat == "released"
        self._clean_pins = options.first_block == "clean-repaint"
        self._cache = KeyValueCache(
            prior.config.layers,
            prior.config.heads,
            prior.config.head_dim,
            prior.latent_in.weight.dtype,
            self.device,
        )
        self._decoder_cache = KeyValueCache(
            vae.config.decoder_layers,
            vae.config.heads,
            vae.config.head_dim,
            vae.latent_in.weight.dtype,
            self.device,
        )
        self._grid = list(options.grid) if options.grid else uniform_grid(options.steps)
        self._times = evaluation_times(self._grid, options.solver)
        self._table, self._zero = self._modulations()
        # shown (t, new tokens of every row as they would read now) before each step
        self.on_step: Callable[[float, list[list[int]]], None] | None = None

    @property
    def block_tokens(self) -> int:
        """Tokens in a block."""
        return self.prior.config.block_size * self.vae.config.patch_size

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generation]]:
        """Yield a request's generation so far after each of its blocks; the last one is not "running"."""
        waiting = iter(requests)
        active: list[_Row] = []
        free = list(range(self.batch_size))
        while True:
            fresh = self._admit(list(islice(waiting, len(free))), free)
            active = sorted([*active, *fresh], key=lambda row: row.slot)
            if not active:
                return
            z = self._denoise(active)
            ids = self._read(active, z)
            for row, block, tokens in zip(list(active), z, ids, strict=True):
                row.pending = block
                row.position += self.prior.config.block_size
                row.latents.append(block)
                row.ids.extend(tokens)
                generation = self._so_far(row)
                if generation.finish != "running":
                    active.remove(row)
                    free.append(row.slot)
                yield row.request, generation
            free.sort()

    # before the first block

    @torch.inference_mode()
    def _modulations(self) -> tuple[Modulation, Modulation]:
        """The modulation of every evaluation of the grid, and that of t = 0."""
        times = torch.tensor(self._times, device=self.device)
        if self._released:  # the released loop feeds timesteps of 0 to 1000 in bf16
            times = (times * 1000).bfloat16().float() / 1000
        return self.prior.modulation(times), self.prior.modulation(torch.zeros_like(times[:1]))

    def _admit(self, requests: list[Request], free: list[int]) -> list[_Row]:
        """Encode prompts, give each a free slot, and fill the caches with what lies before its block."""
        latents = self._encode([request.prompt for request in requests])
        rows = [
            self._row(request, free.pop(0), known)
            for request, known in zip(requests, latents, strict=True)
        ]
        if not rows:
            return rows
        slots = max(row.slot for row in rows) + 1
        length = max(len(r.prefix) + r.blocks * self.prior.config.block_size for r in rows)
        self._cache.reserve(slots, length)
        self._decoder_cache.reserve(slots, length)
        for count, group in groupby(rows, key=lambda row: len(row.prefix)):
            if count:
                self._prefill(list(group), count)
        return rows

    def _encode(self, prompts: list[Sequence[int]]) -> list[Tensor]:
        """Posterior means (n, d) of prompts on the prior's scale, n latents that hold a prompt token.

        A prompt is padded to whole blocks; with VAE blocks above 1 the padding is seen inside its block,
        as in the released code. Prompts of equal padded length are encoded together.
        """
        lengths = [-(-len(prompt) // self.block_tokens) * self.block_tokens for prompt in prompts]
        found: dict[int, Tensor] = {}
        for length in set(lengths):
            members = [i for i, own in enumerate(lengths) if own == length]
            if not length:
                empty = torch.empty(0, self.prior.config.latent_dim, device=self.device)
                found |= dict.fromkeys(members, empty)
                continue
            ids = torch.full((len(members), length), self.pad_id, device=self.device)
            for row, member in zip(ids, members, strict=True):
                prompt = torch.tensor(list(prompts[member]), device=self.device)
                row[: len(prompt)] = prompt
            means = self.vae.to_prior(self.vae.encode(ids).mean)
            for mean, member in zip(means, members, strict=True):
                found[member] = mean[: -(-len(prompts[member]) // self.vae.config.patch_size)]
        return [found[i] for i in range(len(prompts))]

    def _row(self, request: Request, slot: int, known: Tensor) -> _Row:
        block, patch = self.prior.config.block_size, self.vae.config.patch_size
        whole = len(known) // block * block
        prefix, position = whole, whole
        if self.options.first_block in ("left-pad", "right-pad"):
            prefix, position = len(known), -(-len(known) // block) * block
        trim = max(0, len(request.prompt) - prefix * patch)
        return _Row(
            request=request,
            slot=slot,
            prefix=known[:prefix],
            pinned=known[prefix:],
            position=position,
            trim=trim,
            blocks=self._block_budget(request, len(known) - prefix, trim),
        )

    def _block_budget(self, request: Request, pinned: int, trim: int) -> int:
        budget = self.options.max_new_tokens
        if budget is None:
            if request.noise is None:
                raise ValueError(
                    "without max_new_tokens, noise must say how many blocks to generate"
                )
            return len(request.noise)
        if self._released:  # counts whole blocks, the prompt's part of the first one included
            missing = self.prior.config.block_size - pinned if pinned else 0
            return 1 if budget < missing else -(-budget // self.block_tokens)
        return -(-(budget + trim) // self.block_tokens)

    def _prefill(self, rows: list[_Row], count: int) -> None:
        """Fill the caches of rows whose prefixes have `count` latents."""
        block = self.prior.config.block_size
        offset = -count % block if self.options.first_block == "left-pad" else 0
        entries = runs([row.slot for row in rows], [0] * len(rows))
        z = torch.stack([row.prefix for row in rows])
        self.prior.remember(
            self._prior_input(z),
            self._zero,
            self.prior.rotation(torch.arange(offset, offset + count, device=self.device)),
            CausalAttention(self._cache, entries, count, block, offset),
        )
        attend = CausalAttention(self._decoder_cache, entries, count, self.vae.config.block_size)
        self.vae.decode_hidden(z, None, attend)
        for row in rows:
            row.fill = row.decoded = count

    # one block

    def _denoise(self, rows: list[_Row]) -> Tensor:
        """The next block of every row, (rows, block_size, d) float32."""
        z = torch.stack([self._noise(row) for row in rows]).to(self.device)
        pins = self._pins(rows)
        start = z
        passes: dict[tuple[bool, bool], _Pass] = {}

        def velocity(z: Tensor, evaluation: int) -> Tensor:
            t = self._times[evaluation]
            options = self.options
            guides = is_guided(t, options.guidance, options.guidance_interval)
            key = (any(row.pending is not None for row in rows), guides)
            if key not in passes:
                passes[key] = self._pass(rows, guides, pins)
            return self._velocity(rows, z, evaluation, passes[key])

        stride = evaluations_per_step(self.options.solver)
        for index, (t, end) in enumerate(zip(self._grid, self._grid[1:], strict=False)):
            if self.on_step:
                self.on_step(t, self._preview(rows, z))
            if pins is None:
                z = step(velocity, z, t, end, index * stride, self.options.solver)
            elif self._clean_pins:
                z = torch.where(pins.where, pins.latents, z)
                z = step(velocity, z, t, end, index * stride, self.options.solver)
            else:
                for repeat in self._repaints(index):
                    if repeat >= 0:
                        known = interpolate(pins.latents, start, torch.tensor(t))
                        z = torch.where(pins.where, known, z)
                    z = step(velocity, z, t, end, index * stride, "euler")
                    if repeat > 0:
                        z = renoise(z, end, t, self._fresh_noise(rows, index, repeat))
        return torch.where(pins.where, pins.latents, z) if pins and self._clean_pins else z

    def _repaints(self, index: int) -> range:
        """The executions of a step under partial repaint, counted down to 0; -1 is one without repaint."""
        early = index < self.options.repaint_fraction * (len(self._grid) - 1)
        return range(self.options.repaint_times - 1, -1, -1) if early else range(-1, -2, -1)

    def _noise(self, row: _Row) -> Tensor:
        block = len(row.latents)
        shape = (self.prior.config.block_size, self.prior.config.latent_dim)
        if row.request.noise is not None:
            return row.request.noise[block].float()
        return block_noise(self.options.seed, row.request.item, block, shape, self._released)

    def _fresh_noise(self, rows: list[_Row], index: int, repeat: int) -> Tensor:
        shape = (self.prior.config.block_size, self.prior.config.latent_dim)
        purpose = f"{REPAINT}/{index}/{repeat}"
        drawn = [
            torch.randn(shape, generator=generator(self.options.seed, r.request.item, 0, purpose))
            for r in rows
        ]
        return torch.stack(drawn).to(self.device)

    def _pins(self, rows: list[_Row]) -> _Pins | None:
        counts = [0 if row.latents else len(row.pinned) for row in rows]
        if not any(counts):
            return None
        block, channels = self.prior.config.block_size, self.prior.config.latent_dim
        where = torch.zeros(len(rows), block, 1, dtype=torch.bool, device=self.device)
        latents = torch.zeros(len(rows), block, channels, device=self.device)
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            where[index, :count] = True
            latents[index, :count] = row.pinned[:count]
        return _Pins(where, latents)

    def _pass(self, rows: list[_Row], guides: bool, pins: _Pins | None) -> _Pass:
        block = self.prior.config.block_size
        commits = [row for row in rows if row.pending is not None]
        fills = [row.fill + (block if row.pending is not None else 0) for row in rows]
        alone = [index for index, fill in enumerate(fills) if guides and fill]
        starts = [row.position - block for row in commits] + [row.position for row in rows]
        starts += [0] * len(alone)  # rotary positions are relative, and a block alone has its own
        positions = torch.tensor(starts, device=self.device).unsqueeze(1)
        positions = positions + torch.arange(block, device=self.device)  # (entries, block)
        count = len(commits)
        attend = BlockAttention(
            self._cache,
            runs([row.slot for row in commits], [row.fill for row in commits]),
            runs([row.slot for row in rows], fills, start=count),
            slice(count + len(rows), len(starts)),
        )
        clean = torch.zeros(len(starts), block, dtype=torch.bool, device=self.device)
        clean[:count] = True
        if pins and self._clean_pins:
            clean[count : count + len(rows)] = pins.where[..., 0]
            clean[count + len(rows) :] = pins.where[alone, :, 0]
        places = clean.flatten().nonzero().squeeze(-1)
        return _Pass(commits, alone, self.prior.rotation(positions), attend, places)

    def _velocity(self, rows: list[_Row], z: Tensor, evaluation: int, entries: _Pass) -> Tensor:
        """The guided velocity of the rows' blocks; commits what is pending on the way."""
        committed = [row.pending for row in entries.commits if row.pending is not None]
        pieces = [torch.stack(committed)] if committed else []
        pieces.append(z)
        if entries.alone:
            pieces.append(z if len(entries.alone) == len(rows) else z[entries.alone])
        modulation = self._table.step(evaluation)
        if len(entries.clean):
            modulation = modulation.with_clean(entries.clean, self._zero)
        x = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        v = self.prior(self._prior_input(x), modulation, entries.table, entries.attend).float()
        for row in entries.commits:
            row.fill += self.prior.config.block_size
            row.pending = None
        conditional = v[len(committed) : len(committed) + len(rows)]
        if not entries.alone:
            return conditional
        unconditional = v[len(committed) + len(rows) :]
        if len(entries.alone) == len(rows):
            return guided(conditional, unconditional, self.options.guidance)
        conditional = conditional.clone()
        conditional[entries.alone] = guided(
            conditional[entries.alone], unconditional, self.options.guidance
        )
        return conditional

    def _prior_input(self, z: Tensor) -> Tensor:
        return z.bfloat16().float() if self._released else z

    # after a block

    def _read(self, rows: list[_Row], z: Tensor) -> list[list[int]]:
        """Token ids of the blocks z (rows, block_size, d), prompt part included."""
        logits = self._logits(rows, z)
        for row in rows:
            row.decoded += self.prior.config.block_size
        options = self.options
        if options.temperature < GREEDY_BELOW and options.repetition_penalty == 1.0:
            return logits.argmax(-1).tolist()
        return [self._choose(row, own).tolist() for row, own in zip(rows, logits, strict=True)]

    def _logits(self, rows: list[_Row], z: Tensor) -> Tensor:
        """(rows, block_size * patch_size, vocab); the decoder's cache holds the blocks, uncounted yet."""
        block = self.prior.config.block_size
        decoded = torch.tensor([row.decoded for row in rows], device=self.device)
        entries = runs([row.slot for row in rows], [row.decoded for row in rows])
        attend = CausalAttention(self._decoder_cache, entries, block, self.vae.config.block_size)
        positions = decoded.unsqueeze(1) + torch.arange(block, device=self.device)
        return self.vae.decode(z, positions, attend).float()

    def _preview(self, rows: list[_Row], z: Tensor) -> list[list[int]]:
        """The new tokens that the blocks would read as now."""
        ids = self._logits(rows, z).argmax(-1).tolist()
        return [own if row.latents else own[row.trim :] for row, own in zip(rows, ids, strict=True)]

    def _choose(self, row: _Row, logits: Tensor) -> Tensor:
        options = self.options
        seen = torch.tensor(row.ids, dtype=torch.int64, device=logits.device)
        logits = penalised(logits, seen, options.repetition_penalty)
        source = generator(options.seed, row.request.item, len(row.latents), TOKENS)
        return choose(logits, options.temperature, options.top_k, options.top_p, source)

    def _so_far(self, row: _Row) -> Generation:
        options = self.options
        exhausted = len(row.latents) >= row.blocks
        latents = torch.stack(row.latents)
        generation = Generation(row.ids[row.trim :], latents, "length" if exhausted else "running")
        if self._released:
            stopped = any(token in options.stop_ids for token in row.ids[-self.block_tokens :])
            return replace(generation, finish="stop") if stopped else generation
        ended = cut(generation.ids, options)
        finish = generation.finish if ended.finish == "running" else ended.finish
        return Generation(ended.ids, latents, finish)


def cut(ids: list[int], options: SamplingOptions) -> Generation:
    """New tokens up to an end token or the budget, whichever comes first."""
    kept = ids[: options.max_new_tokens]
    end = next((i for i, token in enumerate(kept) if token in options.stop_ids), None)
    if end is not None:
        return Generation(kept[:end], finish="stop")
    whole = options.max_new_tokens is not None and len(ids) >= options.max_new_tokens
    return Generation(kept, finish="length" if whole else "running")
