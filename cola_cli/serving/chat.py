"""Conversations with a model, turn after turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_cli.api import LanguageModel
from cola_cli.corpus.chats import ChatTemplate, MalformedChat, Message, read_template, template_of
from cola_cli.errors import UsageError
from cola_cli.sampling.requests import Generation, Request
from cola_cli.settings.resolve import nearest, resolve
from cola_cli.settings.sample import SampleSettings, SamplingOptions

MOST_TOKENS = 2048  # of a conversation with a model whose context is not known


class Conversation:
    """Turns with a model: a text that both write on, or messages in a chat template."""

    def __init__(
        self, model: LanguageModel, settings: SampleSettings, template: ChatTemplate | None = None
    ) -> None:
        self.model, self.settings, self.template = model, settings, template
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self._said: list[Message] = []
        self._asked: list[Message] = []  # the same, with the question that is not answered yet
        self._turns = 0
        self.forgotten = 0  # tokens at the beginning that the last question leaves no room for

    def set(self, name: str, value: str) -> Any:
        """Change a setting of sampling, or with an empty value show it. Raises UsageError."""
        if name not in SampleSettings.model_fields:
            raise UsageError(
                f"there is no command /{name}.", nearest(name, SampleSettings.model_fields)
            )
        if value:
            before = self.settings.model_dump(mode="json", exclude_none=True)
            self.settings = resolve(
                SampleSettings,
                "sample",
                assignments=[f"{name}={value}"],
                recorded=("now", {key: old for key, old in before.items() if key != name}),
            )
        return getattr(self.settings, name)

    def ask(self, line: str) -> Request:
        """The request that continues after a line. Raises UsageError where the template refuses it."""
        tokenizer = self.model.require_tokenizer()
        self._asked = [*self._said, Message("user", line)]
        if self.template is None:
            ids = tokenizer.encode("".join(message.content for message in self._asked))
        else:
            try:
                ids = self.template.encode(self._asked, tokenizer)
            except MalformedChat as error:
                raise UsageError(f"that cannot be said: {error}.", "Say it otherwise.") from None
        room = (self.model.context or MOST_TOKENS) - self.settings.max_new_tokens
        seen = ids[-max(1, room) :]
        self.forgotten = len(ids) - len(seen)
        self._turns += 1
        return Request(self._turns - 1, seen)

    def options(self) -> SamplingOptions:
        """The options of the next turn."""
        return self.settings.options(stop_ids(self.model, self.template))

    def stream(self, request: Request) -> Iterator[tuple[Request, Generation]]:
        """The continuation so far, block by block."""
        return self.model.stream_requests([request], self.options(), 1)

    def answer(self, generation: Generation) -> None:
        """Add what was asked and its continuation to the conversation."""
        self._said = [*self._asked, Message("assistant", generation.text or "")]


def template_for(model: LanguageModel, named: Path | None) -> ChatTemplate | None:
    """The chat template that was named, else the model's own, if it has one."""
    if named is not None:
        return ChatTemplate(read_template(named))
    return None if model.chat_template is None else template_of(model.chat_template)


def stop_ids(model: LanguageModel, template: ChatTemplate | None) -> tuple[int, ...]:
    """The tokens that end what a model writes: end-of-text, and what ends an answer in its template."""
    tokenizer = model.require_tokenizer()
    ends = [tokenizer.end_of_text_id, *([template.end(tokenizer)] if template else [])]
    return tuple(dict.fromkeys(ends))
