"""Settings of `cola eval run`."""

from __future__ import annotations

from pydantic import Field

from cola_cli.settings.sample import MOST_TOKENS, SampleSettings


class EvaluateSettings(SampleSettings):
    """How benchmark prompts are answered: the sampling settings, 32 new tokens unless said otherwise."""

    max_new_tokens: int = Field(
        default=32, ge=1, le=MOST_TOKENS, description="Tokens of an answer."
    )
    cut_prompts: bool = Field(
        default=False,
        description="Keep the end of a prompt that is longer than the model's context leaves room for, and"
        " mark its answer, instead of refusing it; for models too small for the worked examples.",
    )
