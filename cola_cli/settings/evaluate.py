"""Settings of `cola eval run`."""

from __future__ import annotations

from pydantic import Field

from cola_cli.sampling.options import SamplingOptions
from cola_cli.settings.sample import SampleSettings


class EvaluateSettings(SampleSettings):
    """How benchmark prompts are answered: the sampling settings, 32 new tokens unless said otherwise.

    cut_prompts: keep the end of a prompt that is longer than the model's context leaves room for, instead
    of refusing it. Every such answer is marked; it is for models too small for the worked examples.
    """

    max_new_tokens: int = Field(default=32, ge=1)
    cut_prompts: bool = False

    def options(self, stop_ids: tuple[int, ...]) -> SamplingOptions:
        """The engine's options."""
        return SampleSettings(**self.model_dump(exclude={"cut_prompts"})).options(stop_ids)
