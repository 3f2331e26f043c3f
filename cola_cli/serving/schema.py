"""What OpenAI's interface says, as types: requests of completions and chats, and the shape of a refusal.

Beside the fields that are declared here a request may hold every setting of sampling. What of OpenAI's has
no meaning for these models is accepted only where it changes nothing.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cola_cli.artifacts.reading import shown
from cola_cli.settings.resolve import nearest
from cola_cli.settings.sample import SampleSettings, Sampling

MOST_SEED = 2**53 - 1  # what every JSON parser keeps
MOST_LOGPROBS = 20
# OpenAI's fields without meaning here, and the values that change nothing; None is always such a value
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
    "suffix": ("",), "top_logprobs": (0,),
}  # fmt: skip
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
SETTINGS = sorted(set(Sampling.model_fields) - {"max_new_tokens", "stop"})

Token = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
RequestT = TypeVar("RequestT", bound="Wanted")


class Refused(Exception):
    """An error in OpenAI's shape, the answer instead of a result."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(strict=True)
    include_usage: bool = False


class Wanted(BaseModel):
    """Fields that both kinds of request have."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = None
    n: int = Field(default=1, ge=1)
    stop: Text | list[Text] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    item: int = Field(default=0, ge=0, lt=2**31, description="Number of the first continuation.")
    watch: bool = Field(default=False, description="Whether the stream shows blocks on their way.")

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to tell beside each new one; None: no log-probabilities."""
        return None

    def settings(self, defaults: SampleSettings) -> SampleSettings:
        """The settings of sampling. Raises Refused for those that are not possible or not known."""
        own: dict[str, Any] = {}
        for name, value in (self.model_extra or {}).items():
            if value is None or name in IGNORED or value in NEUTRAL.get(name, ()):
                continue
            if name in NEUTRAL:
                raise Refused(400, f"{name} has no meaning for this model.", name)
            if name not in SETTINGS:
                known = [*type(self).model_fields, *SETTINGS]
                remedy = nearest(name, known)
                raise Refused(400, f"{shown(name)} is not a field. {remedy}", shown(name))
            own[name] = value
        if self.max_tokens is not None:
            own["max_new_tokens"] = self.max_tokens
        if self.stop is not None:
            own["stop"] = self.stop
        try:
            found = SampleSettings.model_validate_json(
                json.dumps(defaults.model_dump(mode="json") | own), strict=True
            )
        except ValidationError as error:
            raise invalid(error) from None
        except (ValueError, RecursionError):
            raise Refused(400, "A number in the request is too long.") from None
        if found.seed > MOST_SEED:
            raise Refused(400, f"seed is more than {MOST_SEED}.", "seed")
        return found


class CompletionRequest(Wanted):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[Token] | list[list[Token]] = ""
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)

    @property
    def alternatives(self) -> int | None:
        """As `logprobs` says."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as texts or as token ids."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return given


class Part(BaseModel):
    """A part of a message; texts alone are understood."""

    type: str
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: str
    content: str | list[Part]

    @property
    def text(self) -> str:
        """Its text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(Wanted):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)

    @property
    def alternatives(self) -> int | None:
        """As `top_logprobs` says, if there is `logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def settings(self, defaults: SampleSettings) -> SampleSettings:
        """As of every request; `max_completion_tokens` is the newer name of `max_tokens`."""
        most = self.max_completion_tokens or self.max_tokens
        return Wanted.settings(self.model_copy(update={"max_tokens": most}), defaults)


def parse(kind: type[RequestT], body: bytes) -> RequestT:
    """The request in a body. Raises Refused naming the field that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> Refused:
    """The first thing that is wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(step) for step in first["loc"][:2])
    message = first["msg"].removeprefix("Value error, ")
    param = str(first["loc"][0]) if first["loc"] else None
    return Refused(400, shown(f"{place}: {message}." if place else f"{message}.", 300), param)
