"""Conversations: reading them, chat templates that write them as text, and which tokens are answers.

A template is a Jinja program with the names that those of Hugging Face tokenizers have (`messages`,
`add_generation_prompt`, `eos_token`, `raise_exception`). It runs in Jinja's sandbox.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cola_cli.artifacts.reading import decoded, read_regular, reason, shown
from cola_cli.corpus.tokenizer import TextTokenizer
from cola_cli.errors import InputError, is_encodable

LIMIT = 1 << 20  # bytes of a template
CONFIG = "tokenizer_config.json"
BESIDE = ("chat_template.jinja", CONFIG)  # where templates lie beside a tokenizer.json
# for tokenizers without one; end-of-text ends its answers
PLAIN = (
    r"{% for message in messages %}{{ '\n\n' if not loop.first }}{{ message.role | capitalize }}:{{ '\n' }}"
    r"{{ message.content }}{% endfor %}{{ '\n\nAssistant:\n' if add_generation_prompt }}"
)
REMEDY = "Correct or remove that line, or leave such chats out: --malformed skip."
FORMS = ("messages", "conversations", "prompt")
ANSWERS = ("response", "completion")
TURNS = (("role", "content"), ("from", "value"))
ROLES = {
    "system": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
}  # fmt: skip
# fields of records that say more than the turns do, and would be lost
UNHEARD = ("system", "tools", "functions", "tool_calls", "documents")

# what a template may end with
OF_A_PROGRAM = (
    TemplateError, TypeError, ArithmeticError, LookupError, ValueError, AttributeError, RecursionError,
    MemoryError,
)  # fmt: skip


class MalformedChat(ValueError):
    """What is wrong with a conversation, to be read after the name of its place."""


class Message(NamedTuple):
    """A turn: role is system, user or assistant."""

    role: str
    content: str


Chat = tuple[Message, ...]


def read_chat(line: str) -> Chat:
    """The conversation in a line of JSON.

    It is {"messages": [{"role", "content"}]}, {"conversations": [{"from", "value"}]} (ShareGPT), or
    {"prompt", "response"}; `completion` is another name of `response`. Other fields are passed over.
    Raises MalformedChat unless, after at most one message of the system, user and assistant take turns, the
    assistant has the last one, and none is empty.
    """
    record = json.loads(line, object_pairs_hook=_fields)
    if not isinstance(record, dict):
        raise MalformedChat("it is not an object with fields")
    forms = [name for name in FORMS if name in record]
    if len(forms) != 1:
        has = shown(", ".join(record)) or "nothing"
        raise MalformedChat(f"it needs one of {', '.join(FORMS)} (it has {has})")
    for name in UNHEARD:
        if record.get(name):
            raise MalformedChat(f"its field {name!r} is not understood")
    turns: Any = record[forms[0]]
    if forms == ["prompt"]:
        answers = [record[name] for name in ANSWERS if name in record]
        if len(answers) != 1:
            raise MalformedChat("it has a prompt, and not one response to it")
        turns = [{"role": "user", "content": turns}, {"role": "assistant", "content": answers[0]}]
    if not isinstance(turns, list):
        raise MalformedChat(f"{forms[0]} is not a list of turns")
    messages = tuple(_message(turn, number) for number, turn in enumerate(turns, 1))
    due = "user"
    for number, (role, _) in enumerate(messages, 1):
        if role != due and not (role == "system" and number == 1):
            raise MalformedChat(f"turn {number} is of the {role}, where one of the {due} is due")
        if role == due:
            due = "assistant" if due == "user" else "user"
    if due == "assistant" or len(messages) < 2:
        raise MalformedChat("it has no response to its last turn")
    return messages


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedChat("it has a field twice")
    return found


def _message(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise MalformedChat(f"turn {number} is not an object with fields")
    for role_name, content_name in TURNS:
        if turn.keys() == {role_name, content_name}:
            role, content = turn[role_name], turn[content_name]
            break
    else:
        has = shown(", ".join(turn)) or "nothing"
        raise MalformedChat(f"turn {number} has not just role and content (it has {has})")
    if role not in [*ROLES]:  # a list, since it may be anything
        raise MalformedChat(f"turn {number} has the role {shown(role, 40)!r}, which is not known")
    if not isinstance(content, str):
        raise MalformedChat(f"turn {number} holds something else than a text")
    if not is_encodable(content):
        raise MalformedChat(f"turn {number} holds half of a surrogate pair")
    if not content.strip():
        raise MalformedChat(f"turn {number} is empty")
    return Message(ROLES[role], content)


class ChatTemplate:
    """Conversations as text and as tokens, the same for training and for answers."""

    def __init__(self, source: str) -> None:
        """Raises jinja2.TemplateError for what is not a template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        self._template = environment.from_string(source)

    def render(self, messages: Sequence[Message], eos: str = "", ask: bool = True) -> str:
        """The conversation as text; with `ask`, ready for an answer.

        eos: the end-of-text token. Raises MalformedChat for a conversation that the template refuses.
        """
        said = [message._asdict() for message in messages]
        try:
            return self._template.render(messages=said, add_generation_prompt=ask, eos_token=eos)
        except OF_A_PROGRAM as error:
            raise MalformedChat(f"the chat template refuses it ({reason(error)})") from None

    def encode(self, messages: Sequence[Message], tokenizer: TextTokenizer) -> list[int]:
        """The token ids of a conversation, ready for an answer: as far as it goes, those of `answered`.

        Special tokens that the template names are set as such. Raises MalformedChat for a conversation that
        the template refuses, or whose texts hold special tokens.
        """
        whole = self.render(messages, tokenizer.end_of_text)
        ids, _, written = self._answered(messages, tokenizer)
        if not whole.startswith(written):  # it writes earlier turns in another way than the last
            ids, written = [], ""
            _require_plain(messages, tokenizer)
        return ids + tokenizer.encode_marked(whole[len(written) :])

    def answered(
        self, messages: Sequence[Message], tokenizer: TextTokenizer, most: int | None = None
    ) -> tuple[list[int], list[bool]]:
        """The token ids of a conversation, and which of them are the assistant's: answers with their ends.

        most: tokens after which the rest may be missing, as the template writes all again for every answer.
        An answer ends with the special token that the template puts behind it, else with end-of-text.
        Raises MalformedChat as `encode` does, and where the text up to a turn is not what later text begins
        with.
        """
        ids, own, _ = self._answered(messages, tokenizer, most)
        if not any(own):
            raise MalformedChat("the chat template does not write its turns one after another")
        return ids, own

    def end(self, tokenizer: TextTokenizer) -> int:
        """The token that ends an answer."""
        try:
            ids, own = self.answered((Message("user", "a"), Message("assistant", "b")), tokenizer)
        except MalformedChat:
            return tokenizer.end_of_text_id
        return next(token for token, is_own in zip(ids[::-1], own[::-1], strict=True) if is_own)

    def _answered(
        self, messages: Sequence[Message], tokenizer: TextTokenizer, most: int | None = None
    ) -> tuple[list[int], list[bool], str]:
        """Ids up to the last answer, which of them are answers, and the text that they stand for.

        All are empty for a template that does not write turns one after another.
        """
        _require_plain(messages, tokenizer)
        ids: list[int] = []
        own: list[bool] = []
        written, eos = "", tokenizer.end_of_text
        for place, message in enumerate(messages):
            if most is not None and len(ids) > most:
                break
            if message.role != "assistant":
                continue
            asked = self.render(messages[:place], eos)
            answered = self.render(messages[: place + 1], eos, ask=False)
            if not (asked.startswith(written) and answered.startswith(asked)):
                return [], [], ""
            prompt = tokenizer.encode_marked(asked[len(written) :])
            answer = tokenizer.encode_marked(answered[len(asked) :])
            marks = [n for n, token in enumerate(answer) if n and token in tokenizer.special_ids]
            if not marks:
                answer.append(tokenizer.end_of_text_id)
            end = marks[0] if marks else len(answer) - 1
            ids += prompt + answer
            own += [False] * len(prompt) + [n <= end for n in range(len(answer))]
            written = answered
        return ids, own, written


def _require_plain(messages: Sequence[Message], tokenizer: TextTokenizer) -> None:
    for message in messages:
        for name in tokenizer.special_tokens:
            if name in message.content:
                raise MalformedChat(f"a message holds the special token {name}")


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


@functools.lru_cache(maxsize=1)
def template_of(source: str) -> ChatTemplate:
    """The template with this source. Raises InputError unless it can be trained with."""
    remedy = "Give another with --chat-template."
    try:
        template = ChatTemplate(source)
    except TemplateError as error:
        raise InputError(f"the chat template is not one ({reason(error)}).", remedy) from error
    turns = [Message(role, "x") for role in ("user", "assistant", "user")]
    try:
        texts = [template.render(turns[:n], ask=n != 2) for n in (1, 2, 3)]
    except MalformedChat:
        return (
            template  # it may want a message of the system, and will be asked of each conversation
        )
    if not all(b.startswith(a) for a, b in itertools.pairwise(texts)):
        raise InputError(
            "the chat template does not write turns one after another, so it cannot be told which tokens are"
            " answers.",
            remedy,
        )
    return template


def read_template(path: Path) -> str:
    """The template in a file, or under `chat_template` in a tokenizer_config.json. Raises InputError."""
    remedy = f"Give a Jinja template, or a {CONFIG} that holds one."
    try:
        text = decoded(read_regular(path, LIMIT))
        if path.suffix == ".json":
            text = json.loads(text)["chat_template"]
        if isinstance(text, list):  # several by name
            text = {one["name"]: one["template"] for one in text}["default"]
        ChatTemplate(text)
    except (OSError, ValueError, KeyError, TypeError, TemplateError) as error:
        raise InputError(f"{path} is not a chat template ({reason(error)}).", remedy) from error
    return str(text)


def template_beside(tokenizer: Path | None) -> str:
    """The template that lies beside a `tokenizer.json`, else the plain one."""
    for name in BESIDE if tokenizer else ():
        path = (tokenizer or Path()).with_name(name)
        if path.is_file() and (name != CONFIG or b"chat_template" in path.read_bytes()):
            return read_template(path)
    return PLAIN
