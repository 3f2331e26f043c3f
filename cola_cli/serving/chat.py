"""Chat templates: Jinja programs that write a conversation as one prompt. One runs only if it was named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cola_cli.api import LanguageModel
from cola_cli.artifacts.reading import decoded, read_regular, reason
from cola_cli.corpus.tokenizer import TextTokenizer
from cola_cli.errors import InputError, UsageError
from cola_cli.sampling.requests import Generation, Request
from cola_cli.serving.schema import Message, Refused
from cola_cli.settings.resolve import nearest, resolve
from cola_cli.settings.sample import SampleSettings, SamplingOptions

LIMIT = 1 << 20  # bytes
MOST_TOKENS = 2048  # of a conversation with a model whose context is not known


class ChatTemplate:
    """Conversations as prompts."""

    def __init__(self, source: str) -> None:
        """Raises jinja2.TemplateError for what is not a template."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        self._template = environment.from_string(source)

    def encode(self, messages: Sequence[Message], tokenizer: TextTokenizer) -> list[int]:
        """The token ids of a conversation, ready for an answer.

        Special tokens that the template names are set as such. Raises Refused for a conversation that the
        template refuses, or whose texts hold special tokens.
        """
        for message in messages:
            for name in tokenizer.special_tokens:
                if name in message.text:
                    raise Refused(400, f"A message holds the special token {name}.", "messages")
        said = [{"role": message.role, "content": message.text} for message in messages]
        return tokenizer.encode_marked(self.render(said))

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation as text. Raises Refused for one that the template refuses."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=True)
        except TemplateError as error:
            raise Refused(400, f"The chat template: {reason(error)}.", "messages") from None


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
        self._turns = 0

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
        self._said.append(Message(role="user", content=line))
        if self.template is None:
            ids = tokenizer.encode("".join(message.text for message in self._said))
        else:
            try:
                ids = self.template.encode(self._said, tokenizer)
            except Refused as refused:
                self._said.pop()
                raise UsageError(f"{refused}", "Say it otherwise.") from None
        room = (self.model.context or MOST_TOKENS) - self.settings.max_new_tokens
        self._turns += 1
        return Request(self._turns - 1, ids[-max(1, room) :])

    def options(self) -> SamplingOptions:
        """The options of the next turn."""
        return self.settings.options((self.model.require_tokenizer().end_of_text_id,))

    def stream(self, request: Request) -> Iterator[tuple[Request, Generation]]:
        """The continuation so far, block by block."""
        return self.model.stream_requests([request], self.options(), 1)

    def text(self, request: Request, generation: Generation) -> str:
        """The text of a continuation."""
        return self.model.require_tokenizer().continuation(request.prompt, generation.ids)

    def answer(self, request: Request, generation: Generation) -> None:
        """Add a continuation to the conversation."""
        text = self.text(request, generation)
        self._said.append(Message(role="assistant", content=text))


def load_template(path: Path) -> ChatTemplate:
    """The template in a file, or under `chat_template` in a tokenizer_config.json. Raises InputError."""
    remedy = "Give a Jinja template, or a tokenizer_config.json that holds one."
    try:
        text = decoded(read_regular(path, LIMIT))
        if path.suffix == ".json":
            text = json.loads(text)["chat_template"]
        return ChatTemplate(text)
    except (OSError, ValueError, KeyError, TypeError, TemplateError) as error:
        raise InputError(f"{path} is not a chat template ({reason(error)}).", remedy) from error


def _raise(message: Any) -> None:
    raise TemplateError(str(message))
