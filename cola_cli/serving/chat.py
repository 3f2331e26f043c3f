"""Chat templates: Jinja programs that write a conversation as one prompt. One runs only if it was named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cola_cli.artifacts.reading import decoded, read_regular, reason
from cola_cli.corpus.tokenizer import TextTokenizer
from cola_cli.errors import InputError
from cola_cli.serving.schema import Message, Refused

LIMIT = 1 << 20  # bytes


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
