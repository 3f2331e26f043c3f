"""From a request to tickets, and from their results to text, cut at stop strings."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from cola_cli.api import LanguageModel
from cola_cli.corpus.chats import ChatTemplate, MalformedChat, Message
from cola_cli.errors import ColaError
from cola_cli.flow.solvers import chosen_grid, evaluation_times
from cola_cli.sampling.engine import Glimpse
from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.texts import with_text
from cola_cli.serving.chat import stop_ids
from cola_cli.serving.scheduler import Busy, Ticket
from cola_cli.serving.schema import ChatRequest, CompletionRequest, Refused, Wanted
from cola_cli.serving.watching import Watching
from cola_cli.settings.sample import SampleSettings


@dataclass(frozen=True)
class Limits:
    """Of a request: tokens of prompt and continuation, passes a block, choices, seconds, bytes of its body,
    seconds in which the body must come."""

    tokens: int = 2048
    passes: int = 256
    choices: int = 64
    seconds: float = 600.0
    body: int = 1 << 20
    body_seconds: float = 20.0


@dataclass(frozen=True)
class Served:
    """A model under the name by which requests ask for it, with the settings that it has by default."""

    name: str
    model: LanguageModel
    settings: SampleSettings
    watching: Watching | None = None
    template: ChatTemplate | None = None
    created: int = 0

    def about(self) -> dict[str, Any]:
        """Its entry in /v1/models; what is cola's own is under `cola`."""
        own = {
            "defaults": self.settings.model_dump(mode="json", exclude={"dtype", "batch_size"}),
            "latents": self.watching is not None,
            "context": self.model.context,
            "chat": self.template is not None,
        }
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "cola", "cola": own,
        }  # fmt: skip


class Choice:
    """One continuation: the text that may be shown of it, and how it ended."""

    def __init__(self, index: int, ticket: Ticket, served: Served, stops: Sequence[str], echo: str):
        self.index, self.ticket = index, ticket
        self.text, self.tokens, self.finish = "", 0, ""
        self._generation: Generation | None = None
        self._echo, self._stops, self._told = echo, stops, 0
        self._tokenizer = served.model.require_tokenizer()

    def take(self, generation: Generation) -> None:
        """The generation so far; what may still become something else is held back."""
        found = with_text(self._tokenizer, self.ticket.request.prompt, generation, self._stops)
        self.text, self.tokens, self._generation = found.text or "", len(found.ids), found
        if found.finish != "running":
            self.finish, self.ticket.gone = found.finish, True

    def _length(self, prompt: Sequence[int], ids: list[int]) -> int:
        return len(self._tokenizer.continuation(prompt, ids))

    def logprobs(self, chat: bool) -> dict[str, Any] | None:
        """Of its tokens, as OpenAI writes them in a chat or a completion; None if they were not asked for."""
        request, generation = self.ticket.request, self._generation
        if request.logprobs is None or generation is None:
            return None
        told: list[list[dict[str, Any]]] = [
            [
                {"token": self._tokenizer.decode([token]), "logprob": chance}
                for token, chance in each.items()
            ]
            for each in generation.logprobs
        ]
        if chat:
            for one in itertools.chain.from_iterable(told):
                one["bytes"] = list(one["token"].encode())
            count = request.logprobs
            ranked = [sorted(each, key=lambda one: -one["logprob"])[:count] for each in told]
            content = [
                each[0] | {"top_logprobs": top} for each, top in zip(told, ranked, strict=True)
            ]
            return {"content": content, "refusal": None}
        every = [{one["token"]: one["logprob"] for one in each} for each in told]
        before = (generation.ids[:count] for count in range(len(told)))
        return {
            "tokens": [each[0]["token"] for each in told],
            "token_logprobs": [each[0]["logprob"] for each in told],
            "top_logprobs": every if request.logprobs else None,
            "text_offset": [self._length(request.prompt, ids) for ids in before],
        }

    def news(self) -> str:
        """The text that was not sent yet."""
        whole = self._echo + self.text
        new, self._told = whole[self._told :], max(self._told, len(whole))
        return new


class Job:
    """A request that is being answered."""

    def __init__(
        self, wanted: Wanted, served: Served, limits: Limits, loop: asyncio.AbstractEventLoop
    ) -> None:
        """loop: on which its progress is awaited. Raises Refused for what cannot be done, or may not."""
        self.wanted, self.served = wanted, served
        self.chat = isinstance(wanted, ChatRequest)
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        settings = wanted.settings(served.settings)
        require_few_passes(settings, limits)
        if wanted.watch and not wanted.stream:
            raise Refused(400, "watch is for streams.", "watch")
        alternatives = wanted.alternatives
        if alternatives is not None:
            if not served.model.needs_prompt:
                raise Refused(400, NO_LOGPROBS, "logprobs")
            if wanted.stream or getattr(wanted, "echo", False):
                raise Refused(400, "logprobs come without stream and echo alone.", "logprobs")
        prompts = encoded(wanted, served, limits.tokens - settings.max_new_tokens)
        if not 1 <= len(prompts) * wanted.n <= limits.choices:
            raise Refused(400, f"A request may have 1 to {limits.choices} continuations.", "n")
        self.prompt_tokens = sum(map(len, prompts))
        self._loop, self._changed = loop, asyncio.Event()
        tokenizer = served.model.require_tokenizer()
        options = settings.options(stop_ids(served.model, served.template if self.chat else None))
        end = time.monotonic() + limits.seconds
        self.choices = []
        for index in range(len(prompts) * wanted.n):
            prompt = prompts[index // wanted.n]
            request = Request(wanted.item + index, prompt, options=options, logprobs=alternatives)
            ticket = Ticket(served.model, request, self._tell, end, wanted.watch)
            echo = tokenizer.decode(prompt) if getattr(wanted, "echo", False) else ""
            self.choices.append(Choice(index, ticket, served, settings.stop, echo))

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._changed.set)

    def leave(self) -> None:
        """Give up its tickets: nobody waits for them any more."""
        for choice in self.choices:
            choice.ticket.gone = True

    async def progress(self) -> AsyncIterator[list[tuple[Choice, Glimpse | None]]]:
        """What is new, until all is told: choices with more text, or with a glimpse. Raises Refused."""
        open_choices = list(self.choices)
        while open_choices:
            await self._changed.wait()
            self._changed.clear()
            news: list[tuple[Choice, Glimpse | None]] = []
            for choice in list(open_choices):
                ticket = choice.ticket
                while ticket.events and not choice.finish:
                    event = ticket.events.popleft()
                    if isinstance(event, Generation):
                        choice.take(event)
                        news.append((choice, None))
                    else:
                        news.append((choice, event))
                if choice.finish:
                    open_choices.remove(choice)
                elif ticket.error is not None:
                    raise refusal(ticket.error)
            if news:
                yield news

    # as OpenAI writes it

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, of the continuations, and of both."""
        new = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new,
            "total_tokens": self.prompt_tokens + new,
        }

    def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        return self._answer(
            [
                self._message(choice, {"message": {"role": "assistant"}}, choice.news())
                for choice in self.choices
            ],
            "",
        ) | {"usage": self.usage()}

    def chunk(self, choice: Choice, glimpse: Glimpse | None) -> dict[str, Any]:
        """A piece of the stream: what is new of one choice.

        A glimpse comes without text: what its block became may be known already, but is told after it.
        """
        text = choice.news() if glimpse is None else ""
        found = self._message(choice, {"delta": {"role": "assistant"}}, text)
        if glimpse is not None:
            found["finish_reason"] = None
        answer = self._answer([found], ".chunk")
        if glimpse is not None and self.served.watching is not None:
            tokens = self.served.model.require_tokenizer()
            answer["cola"] = self.served.watching.shown(glimpse, tokens)
        return answer

    def last_chunk(self) -> dict[str, Any]:
        """The piece of the stream that holds the usage."""
        return self._answer([], ".chunk") | {"usage": self.usage()}

    def _answer(self, choices: list[dict[str, Any]], suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.served.name,
            "choices": choices,
        }  # fmt: skip

    def _message(self, choice: Choice, chat: dict[str, Any], text: str) -> dict[str, Any]:
        about = {
            "index": choice.index,
            "logprobs": choice.logprobs(self.chat),
            "finish_reason": choice.finish or None,
        }
        if not self.chat:
            return about | {"text": text}
        return about | {key: value | {"content": text} for key, value in chat.items()}


NO_LOGPROBS = (
    "logprobs are not given: blocks are decoded from latents, or filled in by certainty, so tokens have no"
    " probabilities given those before them. `cola likelihood` bounds the likelihood of a text."
)


def require_few_passes(settings: SampleSettings, limits: Limits) -> None:
    """Raise Refused for settings with which one block would hold up everybody else."""
    passes = len(evaluation_times(chosen_grid(settings.steps, settings.grid), settings.solver))
    if settings.first_block == "partial-repaint":
        passes *= settings.repaint_times
    if passes > limits.passes:
        raise Refused(400, f"A block may take {limits.passes} passes here, not {passes}.", "steps")


def encoded(wanted: Wanted, served: Served, most: int) -> list[list[int]]:
    """The token ids of the prompts. Raises Refused for those that the model cannot continue."""
    model, tokenizer = served.model, served.model.require_tokenizer()
    if isinstance(wanted, ChatRequest):
        if served.template is None:
            raise Refused(
                400,
                f"{served.name} has no chat template. Use /v1/completions, or serve it with --chat-template.",
                "model",
            )
        said = [Message(message.role, message.text) for message in wanted.messages]
        try:
            found = [served.template.encode(said, tokenizer)]
        except MalformedChat as error:
            raise Refused(400, f"The messages cannot be used: {error}.", "messages") from None
    else:
        assert isinstance(wanted, CompletionRequest)
        found = [tokenizer.encode(p) if isinstance(p, str) else p for p in wanted.prompts]
    for ids in found:
        if not ids and model.needs_prompt:
            raise Refused(
                400, "The prompt has no tokens, and this model goes on from one.", "prompt"
            )
        room = most if model.context is None else min(most, model.context - 1)
        if len(ids) > room:
            raise Refused(
                400,
                f"The prompt has {len(ids)} tokens; with this max_tokens {max(0, room)} are possible.",
                "prompt",
                "context_length_exceeded",
            )
        try:
            model.require_ids(ids, "prompt")
        except ValueError as error:
            raise Refused(400, f"{error}.", "prompt") from None
    return found


def refusal(error: BaseException) -> Refused:
    """What is answered when a continuation fails."""
    if isinstance(error, TimeoutError):
        return Refused(408, "The request took longer than this server allows.", code="timeout")
    if isinstance(error, Busy):
        return Refused(503, "The server is shutting down.", code="shutting_down")
    if isinstance(error, MemoryError):
        return Refused(503, "There is not enough memory for this request.", code="out_of_memory")
    if isinstance(error, ColaError | ValueError):
        damaged = isinstance(error, ColaError) and error.exit_code not in (2, 4)
        return Refused(500 if damaged else 400, f"{error}")
    return Refused(500, "A fault in cola; the server's log says which.")
