"""Block-by-block generation: the released sampler's mathematics with its waste removed.

For each block: noise, a few solver steps of the prior given the clean history, one decoder pass, a token for
every position. Conditional and unconditional blocks go through the prior in one pass, the clean block is
committed to the cache in the first pass of the next one, and rows join and leave at block boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from cola_cli.cost.sampling import PORTION
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling.cache import CausalAttention, KeyValueCache, stretches
from cola_cli.sampling.denoise import Denoiser, rounded
from cola_cli.sampling.fast import best_denoiser
from cola_cli.sampling.fast.packed import packed
from cola_cli.sampling.noise import TOKENS, block_noise, generator
from cola_cli.sampling.requests import Generating, Generation, Request
from cola_cli.sampling.sampler import Sampler
from cola_cli.sampling.tokens import choose, penalised, require_finite
from cola_cli.settings.sample import SamplingOptions

T = TypeVar("T")
MakeDenoiser = Callable[[Prior, KeyValueCache, SamplingOptions], Denoiser]


@dataclass(frozen=True)
class Glimpse:
    """A row's block before a step at time t: its number, its latents (block_size, d), the new tokens that it
    would read as now, and the decoder's probability of each."""

    request: Request
    block: int
    t: float
    latents: Tensor
    ids: list[int]
    chances: list[float]


class Engine(Sampler[Generating]):
    """Continues prompts with a Text VAE and a prior, up to `batch_size` at a time."""

    def __init__(
        self,
        vae: TextVAE,
        prior: Prior,
        options: SamplingOptions,
        batch_size: int = 64,
        pad_id: int | None = None,
        make_denoiser: MakeDenoiser = best_denoiser,
    ) -> None:
        """make_denoiser: what takes a block from noise to latents."""
        super().__init__(options, batch_size)
        self.vae, self.prior = vae, prior
        self._decoder = packed(vae, "latent_in", "decoder", "patch_out", "token_out")
        self.pad_id = vae.config.vocab_size - 1 if pad_id is None else pad_id
        self.device = prior.latent_in.weight.device
        self._released = options.compat == "released"
        config = prior.config
        self._cache = KeyValueCache(config.layers, config, prior.latent_in.weight, config.said_dim)
        self._decoder_cache = KeyValueCache(
            vae.config.decoder_layers, vae.config, vae.latent_in.weight
        )
        self._encoder_cache: KeyValueCache | None = None
        if options.history == "re-encoded":
            self._encoder_cache = KeyValueCache(
                vae.config.encoder_layers, vae.config, vae.latent_in.weight
            )
        with torch.inference_mode():
            self._zero = prior.modulation(torch.zeros(1, device=self.device))
        self.denoiser = make_denoiser(prior, self._cache, options)
        self.on_step: Callable[[list[Glimpse]], None] | None = None  # shown all rows at each step

    @property
    def block_tokens(self) -> int:
        """Tokens in a block."""
        return self.prior.config.block_size * self.vae.config.patch_size

    @torch.inference_mode()
    def step(self) -> list[tuple[Request, Generation]]:
        """The generation so far of every row after its next block."""
        rows, found = list(self.active), []
        z = self._denoise(rows)
        ids = self._read(rows, z)
        history = z if self._encoder_cache is None else self._encoded_again(rows, ids)
        for row, block, seen, tokens in zip(rows, z, history, ids, strict=True):
            row.pending = seen
            row.position += self.prior.config.block_size
            row.latents.append(block)
            row.ids.extend(tokens)
            found.append((row.request, self._so_far(row)))
            if found[-1][1].finish != "running":
                self._remove(row)
        return found

    # before the first block

    @torch.inference_mode()
    def join(self, requests: list[Request]) -> None:
        """Encode prompts, give each a free slot, and fill the caches with what lies before its block."""
        if not requests:
            return
        latents = self._encode([request.prompt for request in requests])
        rows = [
            self._row(request, self._slots.take(), known)
            for request, known in zip(requests, latents, strict=True)
        ]
        places = max(row.slot for row in rows) + 1
        length = max(len(r.prefix) + r.blocks * self.prior.config.block_size for r in rows)
        self.denoiser.reserve(places, length)
        self._cache.said[[row.slot for row in rows]] = 0
        self._decoder_cache.reserve(places, length)
        if self._encoder_cache is not None:
            self._encoder_cache.reserve(places, length)
        for count, group in groupby(rows, key=lambda row: len(row.prefix)):
            if count:
                for portion in portions(list(group), count):
                    self._prefill(portion, count)
        self.active = sorted([*self.active, *rows], key=lambda row: row.slot)

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
            for portion in portions(members, length):
                padded = [
                    [*prompts[i], *[self.pad_id] * (length - len(prompts[i]))] for i in portion
                ]
                ids = torch.tensor(padded, device=self.device)
                means = self.vae.to_prior(self.vae.encode(ids).mean)
                for mean, member in zip(means, portion, strict=True):
                    found[member] = mean[: -(-len(prompts[member]) // self.vae.config.patch_size)]
        return [found[i] for i in range(len(prompts))]

    def _row(self, request: Request, slot: int, known: Tensor) -> Generating:
        block, patch = self.prior.config.block_size, self.vae.config.patch_size
        whole = len(known) // block * block
        prefix, position = whole, whole
        if self.options.first_block in ("left-pad", "right-pad"):
            prefix, position = len(known), -(-len(known) // block) * block
        trim = max(0, len(request.prompt) - prefix * patch)
        options = self._options(request)
        return Generating(
            request=request,
            slot=slot,
            prefix=known[:prefix],
            pinned=known[prefix:],
            position=position,
            trim=trim,
            blocks=self._block_budget(request, len(known) - prefix, trim),
            options=options,
            # a chain's latents are the codes of the tokens that it chose
            decodes=not (self.prior.config.chain and options.takes_likeliest)
            or self.on_step is not None,
        )

    def _block_budget(self, request: Request, pinned: int, trim: int) -> int:
        budget, given = self._options(request).max_new_tokens, request.noise
        if given is not None:
            shape = (self.prior.config.block_size, self.prior.config.latent_dim)
            if given.dim() != 3 or given.shape[1:] != shape:
                raise ValueError(
                    f"noise of a prompt is {tuple(given.shape)}, not (blocks, *{shape})"
                )
        if budget is None:
            if given is None:
                raise ValueError(
                    "without max_new_tokens, noise must say how many blocks to generate"
                )
            return len(given)
        blocks = -(-(budget + trim) // self.block_tokens)
        if self._released:  # counts whole blocks, the prompt's part of the first one included
            missing = self.prior.config.block_size - pinned if pinned else 0
            blocks = 1 if budget < missing else -(-budget // self.block_tokens)
        if given is not None and len(given) < blocks:
            raise ValueError(f"noise has {len(given)} blocks, {budget} new tokens need {blocks}")
        return blocks

    def _prefill(self, rows: list[Generating], count: int) -> None:
        """Fill the caches of rows whose prefixes have `count` latents."""
        block = self.prior.config.block_size
        offset = -count % block if self.options.first_block == "left-pad" else 0
        entries = stretches([row.slot for row in rows], [0] * len(rows))
        z = torch.stack([row.prefix for row in rows])
        hidden, _ = self.prior.remember(
            rounded(z, self._released),
            self._zero,
            self.prior.view(
                torch.arange(offset, offset + count, device=self.device),
                CausalAttention(
                    self._cache, entries, count, self.prior.config.history_block, offset
                ),
            ),
        )
        if hidden is not None:
            self._cache.said[[row.slot for row in rows]] = hidden[:, -1]
        decoding = [i for i, row in enumerate(rows) if row.decodes]
        if decoding:
            read = stretches([rows[i].slot for i in decoding], [0] * len(decoding))
            attend = CausalAttention(self._decoder_cache, read, count, self.vae.config.block_size)
            self._decoder.decode_hidden(z[decoding], None, attend)
        if self._encoder_cache is not None:
            prompts = [row.request.prompt[: count * self.vae.config.patch_size] for row in rows]
            attend = CausalAttention(
                self._encoder_cache, entries, count, self.vae.config.block_size
            )
            self.vae.encode(torch.tensor(prompts, device=self.device), None, attend)
        for row in rows:
            row.fill = row.decoded = count

    # one block

    def _denoise(self, rows: list[Generating]) -> Tensor:
        """The next block of every row, (rows, block_size, d) float32."""
        noise = torch.stack([self._noise(row) for row in rows])
        if (on_step := self.on_step) is not None:
            self.denoiser.shown = lambda t, z: on_step(self._glimpses(rows, t, z))
        return self.denoiser.denoise(rows, noise)

    def _noise(self, row: Generating) -> Tensor:
        block = len(row.latents)
        shape = (self.prior.config.block_size, self.prior.config.latent_dim)
        if row.request.noise is not None:
            return row.request.noise[block].float()
        return block_noise(row.options.seed, row.request.item, block, shape, self._released)

    # after a block

    def _read(self, rows: list[Generating], z: Tensor) -> list[list[int]]:
        """Token ids of the blocks z (rows, block_size, d), prompt part included."""
        decoding = [i for i, row in enumerate(rows) if row.decodes]
        if len(decoding) == len(rows):
            ids = self._decoded(rows, z)
        else:
            ids = self.prior.nearest_tokens(require_finite(z)).tolist()
            if decoding:
                found = self._decoded([rows[i] for i in decoding], z[decoding])
                for i, own in zip(decoding, found, strict=True):
                    ids[i] = own
        for row in rows:
            row.decoded += self.prior.config.block_size
        return ids

    def _decoded(self, rows: list[Generating], z: Tensor) -> list[list[int]]:
        logits = self._logits(rows, z)
        if all(row.options.takes_likeliest for row in rows):
            return logits.argmax(-1).tolist()
        return [self._choose(row, own).tolist() for row, own in zip(rows, logits, strict=True)]

    def _logits(self, rows: list[Generating], z: Tensor) -> Tensor:
        """(rows, block_size * patch_size, vocab); the decoder's cache holds the blocks, uncounted yet."""
        block = self.prior.config.block_size
        decoded = torch.tensor([row.decoded for row in rows], device=self.device)
        entries = stretches([row.slot for row in rows], [row.decoded for row in rows])
        attend = CausalAttention(self._decoder_cache, entries, block, self.vae.config.block_size)
        positions = decoded.unsqueeze(1) + torch.arange(block, device=self.device)
        return require_finite(self._decoder.decode(z, positions, attend).float())

    def _encoded_again(self, rows: list[Generating], ids: list[list[int]]) -> Tensor:
        """The posterior means of the blocks' tokens (rows, block_size, d), prompts as they were given."""
        assert self._encoder_cache is not None
        block, patch = self.prior.config.block_size, self.vae.config.patch_size
        starts = [row.decoded - block for row in rows]
        given = [
            row.request.prompt[start * patch :] for row, start in zip(rows, starts, strict=True)
        ]
        tokens = [
            [*prompt, *own[len(prompt) :]] for prompt, own in zip(given, ids, strict=True)
        ]  # a prompt ends in the first block at the latest
        attend = CausalAttention(
            self._encoder_cache,
            stretches([row.slot for row in rows], starts),
            block,
            self.vae.config.block_size,
        )
        positions = torch.tensor(starts, device=self.device).unsqueeze(1)
        positions = positions + torch.arange(block, device=self.device)
        posterior = self.vae.encode(torch.tensor(tokens, device=self.device), positions, attend)
        return self.vae.to_prior(posterior.mean)

    def _glimpses(self, rows: list[Generating], t: float, z: Tensor) -> list[Glimpse]:
        chances, ids = self._logits(rows, z).softmax(-1).max(-1)
        trims = [0 if row.latents else row.trim for row in rows]
        return [
            Glimpse(
                row.request, len(row.latents), t, own, read[trim:].tolist(), sure[trim:].tolist()
            )
            for row, own, read, sure, trim in zip(rows, z, ids, chances, trims, strict=True)
        ]

    def _choose(self, row: Generating, logits: Tensor) -> Tensor:
        options = row.options
        seen = torch.tensor(row.ids, dtype=torch.int64, device=logits.device)
        logits = penalised(logits, seen, options.repetition_penalty)
        source = generator(options.seed, row.request.item, len(row.latents), TOKENS)
        return choose(logits, options, source)

    def _so_far(self, row: Generating) -> Generation:
        options = row.options
        exhausted = len(row.latents) >= row.blocks
        latents = torch.stack(row.latents)
        generation = Generation(row.ids[row.trim :], latents, "length" if exhausted else "running")
        if self._released:
            stopped = any(token in options.stop_ids for token in row.ids[-self.block_tokens :])
            return replace(generation, finish="stop") if stopped else generation
        ended = cut(generation.ids, options)
        finish = generation.finish if ended.finish == "running" else ended.finish
        return Generation(ended.ids, latents, finish)


def portions(members: list[T], length: int) -> Iterator[list[T]]:
    """Members of `length` positions each, so many together that memory stays bounded."""
    size = max(1, PORTION // length)
    for start in range(0, len(members), size):
        yield members[start : start + size]


def cut(ids: list[int], options: SamplingOptions) -> Generation:
    """New tokens up to an end token or the budget, whichever comes first."""
    kept = ids[: options.max_new_tokens]
    end = next((i for i, token in enumerate(kept) if token in options.stop_ids), None)
    if end is not None:
        return Generation(kept[:end], finish="stop")
    whole = options.max_new_tokens is not None and len(ids) >= options.max_new_tokens
    return Generation(kept, finish="length" if whole else "running")
