"""The Python interface: `cola_cli.load(path)` and what can be done with a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from cola_cli.artifacts.origin import published
from cola_cli.corpus.tokenizer import TextTokenizer
from cola_cli.errors import ColaError, DamagedArtifact, InputError, UsageError, is_out_of_memory
from cola_cli.families import TokenModel, baselines, commands, token_model
from cola_cli.machine.processes import pick_device
from cola_cli.models.attention import BlockCausal
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import Posterior, TextVAE
from cola_cli.sampling.denoising import Denoising, Frame
from cola_cli.sampling.engine import Engine, Glimpse
from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.sampler import Sampler
from cola_cli.sampling.texts import run_to_stops
from cola_cli.settings import nearest
from cola_cli.settings.sample import FirstBlock, SamplingOptions
from cola_cli.weights.folder import open_model_folder
from cola_cli.weights.names import find_model

BATCH_SIZE = 64


class Options(TypedDict, total=False):
    """What generation can be told; `cola settings sample` explains each."""

    steps: int
    grid: Sequence[float] | None
    solver: Literal["euler", "heun", "midpoint"]
    eta: float
    guidance: float
    guidance_interval: tuple[float, float]
    settle: int
    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    seed: int
    first_block: FirstBlock
    repaint_times: int
    repaint_fraction: float
    unmask_steps: int
    unmask_block: int
    head_temperature: float
    history: Literal["generated", "re-encoded"]
    compat: Literal["none", "released"]
    stop: str | Sequence[str]
    stop_ids: tuple[int, ...]


class LanguageModel(ABC):
    """What can continue text: Cola DLM, or a baseline.

    Attributes: tokenizer (or None), context (tokens of a training sequence, or None if unknown), defaults
    (settings of sampling that the model was stored with), needs_prompt (whether it cannot begin with no token
    at all), path (where it was opened, None if it was made in memory), chat_template (its Jinja source, of a
    model that was trained on conversations).
    """

    needs_prompt = False
    path: Path | None = None
    chat_template: str | None = None

    def __init__(self, tokenizer: TextTokenizer | None, context: int | None) -> None:
        self.tokenizer, self.context = tokenizer, context
        self.defaults: dict[str, Any] = {}

    @property
    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks, the one that generates last."""

    @abstractmethod
    def sampler(self, options: SamplingOptions, batch_size: int, pad_id: int | None) -> Sampler:
        """What continues prompts with these options. Raises ValueError for options without meaning here."""

    @property
    def _weight(self) -> Tensor:
        return next(self.networks[-1].parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self._weight.dtype

    @overload
    def generate(  # type: ignore[overload-overlap] # a str is a sequence of str too
        self,
        prompts: str,
        max_new_tokens: int = 64,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[Options],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[Options],
    ) -> list[Generation]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = 64,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[Options],
    ) -> Generation | list[Generation]:
        """Continue a text, or several as one batch; what is not in `options` is as the model was stored.

        Stops at, and cuts before, the texts of `stop` and, unless `stop_ids` says otherwise, the tokenizer's
        end-of-text token. Each Generation has .text, which continues its prompt without a gap, beside .ids
        and .latents (of whole blocks, whatever was cut). Raises
        InputError without a tokenizer, TypeError for an unknown option, ValueError for one out of range.
        """
        if isinstance(prompts, str):
            return self.generate([prompts], max_new_tokens, batch_size, **options)[0]
        tokenizer = self.require_tokenizer()
        encoded = [tokenizer.encode(prompt) for prompt in prompts]
        return self.generate_ids(
            encoded,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            **self._stopping(options),
        )

    def stream(
        self, prompt: str, max_new_tokens: int = 64, **options: Unpack[Options]
    ) -> Iterator[str]:
        """Continue a text, piece by piece as blocks are done; the pieces together are `generate`'s .text.

        `"".join(model.stream("Tom was"))`. Raises as `generate` does.
        """
        tokenizer = self.require_tokenizer()
        ids = tokenizer.encode(prompt)
        settings = self.options(max_new_tokens, **self._stopping(options))
        given = ""
        for _, found in self.stream_requests([Request(0, ids)], settings, 1):
            text = found.text or ""
            if text.startswith(given) and text != given:
                yield text[len(given) :]
                given = text

    def options(
        self, max_new_tokens: int | None = 64, **options: Unpack[Options]
    ) -> SamplingOptions:
        """Options for a sampler: these, over those that the model was stored with, over the defaults."""
        for name in options:
            if name not in SamplingOptions.model_fields:
                raise TypeError(
                    f"there is no option {name!r}. {nearest(name, SamplingOptions.model_fields)}"
                )
        chosen: dict[str, Any] = {**self.defaults, **options}
        return SamplingOptions(max_new_tokens=max_new_tokens, **chosen)

    def _stopping(self, options: Options) -> Options:
        return {"stop_ids": (self.require_tokenizer().end_of_text_id,), **options}

    def generate_ids(
        self,
        prompts: list[list[int]],
        *,
        max_new_tokens: int | None,
        pad_id: int | None = None,
        noise: Tensor | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[Options],
    ) -> list[Generation]:
        """Continue token ids; `options` go over the model's own `defaults`.

        noise (B, blocks, block_size, d), or None to draw it from the seed and the prompt's place in the list.
        With noise and max_new_tokens=None, exactly its blocks are generated and all their new tokens
        returned. pad_id fills a prompt's last block where the VAE needs whole blocks. Raises ValueError for
        options and ids out of range, and for noise that is not finite, has another shape or too few blocks.
        """
        if noise is not None and noise.dim() != 4:
            raise ValueError(
                f"noise is {tuple(noise.shape)}, not (prompts, blocks, block_size, latent_dim)"
            )
        if noise is not None and len(noise) != len(prompts):
            raise ValueError(f"noise is for {len(noise)} prompts, there are {len(prompts)}")
        if noise is not None and prompts and not (noise.numel() and noise.isfinite().all()):
            raise ValueError("noise is empty, or holds NaN or infinity")
        for item, prompt in enumerate(prompts):
            self.require_ids(prompt, f"prompt {item}")
        requests = [
            Request(item, prompt, None if noise is None else noise[item])
            for item, prompt in enumerate(prompts)
        ]
        settings = self.options(max_new_tokens, **options)
        found: dict[int, Generation] = {}
        for request, generation in self.stream_requests(requests, settings, batch_size, pad_id):
            found[request.item] = generation
        return [found[item] for item in range(len(prompts))]

    def stream_requests(
        self,
        requests: Iterable[Request],
        options: SamplingOptions,
        batch_size: int = BATCH_SIZE,
        pad_id: int | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Iterator[tuple[Request, Generation]]:
        """Yield each request's generation so far, block by block, with its text where a tokenizer is at hand.

        When memory runs out, what is unfinished starts again in batches of half the size, which `warn` is
        told; results do not depend on it. MemoryError is raised when a single prompt is too much, ValueError
        for a batch size below 1, DamagedArtifact or UsageError when the numbers overflow.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        tokenizer = self.require_tokenizer() if options.stop else self.tokenizer
        if pad_id is None and tokenizer is not None:
            pad_id = tokenizer.pad_id
        waiting = iter(requests)
        unfinished: dict[int, Request] = {}

        def taken() -> Iterator[Request]:
            yield from list(unfinished.values())
            for request in waiting:
                unfinished[request.item] = request
                yield request

        while True:
            try:
                sampler = self.sampler(options, batch_size, pad_id)
                running = (
                    run_to_stops(sampler, taken(), tokenizer)
                    if tokenizer is not None
                    else sampler.run(taken())
                )
                for request, generation in running:
                    if generation.finish != "running":
                        del unfinished[request.item]
                    yield request, generation
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if batch_size == 1:
                    raise MemoryError from error
            except FloatingPointError:
                raise self.overflow() from None
            # here the error is gone, and with it the caches of the frames it came from
            batch_size //= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            warn(f"memory ran out; going on with {batch_size} prompts at a time")

    def __repr__(self) -> str:
        count = sum(weight.numel() for network in self.networks for weight in network.parameters())
        place = f"{published(self.path) or self.path}: " if self.path else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<{type(self).__name__} {place}{count:,} weights, {dtype} on {self.device}>"

    def require_ids(self, ids: Sequence[int], name: str) -> None:
        """Raise ValueError for token ids that the model has no embedding for."""
        config: Any = self.networks[0].config
        for token in ids:
            if not 0 <= token < config.vocab_size:
                raise ValueError(
                    f"{name} holds the token {token}, but ids are 0 to {config.vocab_size - 1}"
                )

    def overflow(self) -> ColaError:
        """What to say when logits are infinite or NaN."""
        for network in self.networks:
            for name, weight in network.named_parameters():
                if not weight.isfinite().all():
                    return DamagedArtifact(
                        f"{self.path or 'the model'}: the weights {name} hold infinity or NaN.",
                        "Train it again, or fetch it again.",
                    )
        return UsageError(
            "the numbers of the model overflow with these settings of sampling.",
            "Use less guidance, or a repetition penalty near 1.",
        )

    def require_tokenizer(self) -> TextTokenizer:
        """The tokenizer. Raises InputError when the model came without one."""
        if self.tokenizer is None:
            raise InputError(
                "this model has no tokenizer.json, so it cannot read or write text.",
                "Put the tokenizer.json beside cola_dlm, or use token ids in Python.",
            )
        return self.tokenizer


class Cola(LanguageModel):
    """A Text VAE, a prior over its latents and, where the folder has one, a tokenizer."""

    def __init__(
        self,
        vae: TextVAE,
        prior: Prior,
        tokenizer: TextTokenizer | None,
        context: int | None = None,
    ) -> None:
        super().__init__(tokenizer, context)
        self.vae, self.prior = vae, prior

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Text VAE and prior."""
        return self.vae, self.prior

    def sampler(self, options: SamplingOptions, batch_size: int, pad_id: int | None) -> Engine:
        """The block-by-block engine."""
        return Engine(self.vae, self.prior, options, batch_size, pad_id)

    def watch(self, prompt: str, max_new_tokens: int = 64, **options: Unpack[Options]) -> Denoising:
        """Continue a text and keep how every block came about; a notebook shows it. Raises as `generate`."""
        tokenizer = self.require_tokenizer()
        request = Request(0, tokenizer.encode(prompt))
        settings = self.options(max_new_tokens, **self._stopping(options))
        engine, frames, before = self.sampler(settings, 1, tokenizer.pad_id), [], request.prompt

        def keep(seen: list[Glimpse]) -> None:
            one = seen[0]
            frames.append(Frame(one.block, one.t, tokenizer.continuation(before, one.ids)))

        engine.on_step = keep
        for _, found in run_to_stops(engine, [request], tokenizer):
            before = [*request.prompt, *found.ids]
        return Denoising(prompt, frames, found)

    @torch.inference_mode()
    def encode(self, ids: Tensor) -> Posterior:
        """ids (B, L) int64 -> mean and log-variance (B, N, d), N = L / patch_size, as the VAE gives them.

        The prior works on (mean - shifting_factor) * scaling_factor: see `vae.to_prior`.
        Raises ValueError for another shape, when L is not a multiple of patch_size, or for ids out of range.
        """
        if ids.dim() != 2 or not ids.numel() or ids.is_floating_point():
            raise ValueError(f"ids is {tuple(ids.shape)} of {ids.dtype}, not (B, L) of integers")
        self.require_ids(ids.flatten().tolist(), "ids")
        return self.vae.encode(ids.to(self.device))

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """z (B, N, d) on the prior's scale -> logits (B, N * patch_size, vocab).

        Latents go to the decoder as they are, as in the released code: scaling is not undone.
        Raises ValueError for another shape.
        """
        self._require_latents(z=z)
        return self.vae.decode(z.to(self.device))

    @torch.inference_mode()
    def velocity(self, z_t: Tensor, t: float | Tensor, history: Tensor | None = None) -> Tensor:
        """The conditional velocity dz/dt = E[z_1 - z_0 | z_t, history], (B, n, d).

        z_t (B, n, d) may span several blocks, block-causal among themselves and after the clean history
        (B, m, d), m a multiple of the block size. t in [0, 1], 0 clean and 1 noise: a float, (B,) or (B, n).
        Raises ValueError for shapes that do not fit, times outside [0, 1], and a student with a chain.
        """
        if self.prior.chain is not None:
            raise ValueError(
                "a student with a chain draws tokens, and has no velocity; name its teacher"
            )
        block = self.prior.config.block_size
        self._require_latents(z_t=z_t, history=history)
        batch, count = z_t.shape[:2]
        if count % block or not count:
            raise ValueError(f"z_t has {count} latents, not a multiple of the block size {block}")
        past = 0 if history is None else history.shape[1]
        if past % block:
            raise ValueError(
                f"history has {past} latents, not a multiple of the block size {block}"
            )
        times = torch.as_tensor(t, dtype=torch.float32, device=self.device)
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise ValueError("t has times outside [0, 1]")
        if times.dim() == 1:
            times = times.unsqueeze(1)
        times = times.expand(batch, count)
        z = z_t.to(self.device)
        if history is not None:
            z = torch.cat((history.to(z), z), dim=1)
            times = torch.cat((times.new_zeros(batch, past), times), dim=1)
        positions = torch.arange(past + count, device=self.device)
        attend = BlockCausal(
            past + count, block, self.device, past if self.prior.config.causal_history else 0
        )
        return self.prior.velocity(z, times, self.prior.view(positions, attend))[:, past:]

    def _require_latents(self, **given: Tensor | None) -> None:
        channels = self.prior.config.latent_dim
        for name, latents in given.items():
            if latents is not None and (latents.dim() != 3 or latents.shape[2] != channels):
                raise ValueError(f"{name} is {tuple(latents.shape)}, not (B, n, {channels})")


class Baseline(LanguageModel):
    """A model over tokens; `token_model` says how it continues text."""

    def __init__(
        self,
        network: nn.Module,
        token_model: TokenModel,
        tokenizer: TextTokenizer | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__(tokenizer, context)
        self.network, self.token_model = network, token_model
        self.needs_prompt = token_model.next_token

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The network over tokens."""
        return (self.network,)

    def sampler(self, options: SamplingOptions, batch_size: int, pad_id: int | None) -> Sampler:
        """The sampler of its family."""
        return self.token_model.sampler(self.network, options, batch_size)


def load(path: str | Path, device: str = "auto", dtype: torch.dtype | None = None) -> Cola:
    """Open a model: a prior artifact, the folder that holds `cola_dlm/`, `hf:org/name[@revision]`, or `demo`.

    device: cpu, cuda, cuda:1 ... or auto, a GPU if there is one. dtype: of the weights; None keeps the stored
    one. Raises InputError when the path holds no model,
    DamagedArtifact when its files are not whole.
    """
    place = find_model(path)
    folder = open_model_folder(place)
    model = Cola(*folder.load(), folder.tokenizer(), folder.context)
    model.defaults, model.path = folder.sampling, place
    model.chat_template = folder.chat_template
    for network in model.networks:
        _place(network, device, dtype)
    return model


def load_baseline(
    path: str | Path, device: str = "auto", dtype: torch.dtype | None = None
) -> Baseline:
    """Open the artifact of a baseline; as `load` otherwise."""
    place = find_model(path)
    folder = open_model_folder(place)
    kind = "checkpoint" if folder.artifact is None else folder.artifact.manifest.kind
    model = token_model(kind)
    if folder.artifact is None or model is None:
        raise InputError(
            f"{path} is a {kind}, not a baseline.",
            f"Name the output of {commands(baselines())}.",
        )
    baseline = Baseline(model.load(folder.artifact), model, folder.tokenizer(), folder.context)
    baseline.path, baseline.chat_template = place, folder.chat_template
    _place(baseline.network, device, dtype)
    return baseline


def load_any(
    path: str | Path, device: str = "auto", dtype: torch.dtype | None = None
) -> LanguageModel:
    """Open whatever can continue text."""
    path = find_model(path)
    artifact = open_model_folder(path).artifact
    if artifact is not None and token_model(artifact.manifest.kind) is not None:
        return load_baseline(path, device, dtype)
    return load(path, device, dtype)


def _place(network: nn.Module, device: str, dtype: torch.dtype | None) -> None:
    """Move the weights; buffers (rotary frequencies) keep float32, whatever the weights are."""
    network.requires_grad_(False).eval()
    chosen = pick_device(device)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(device=chosen, dtype=dtype)
    for name, buffer in network.named_buffers():
        setattr(network, name, buffer.to(chosen))
