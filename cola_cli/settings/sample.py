"""Settings of `cola sample`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cola_cli.sampling.options import SamplingOptions
from cola_cli.settings.resolve import Settings, runtime


class SampleSettings(Settings):
    """How prompts are continued; see SamplingOptions for the meaning of what it shares with it.

    repetition_penalty: None is 1.0, and 1.1 under compat = "released". dtype: of the weights; `auto` is
    float32 on a CPU, where bf16 products are emulated, and as stored elsewhere. batch_size: prompts at a
    time, without influence on the result in float32. items_per_part: prompts that are committed to an
    artifact together.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    steps: int = Field(default=16, ge=1)
    grid: list[float] | None = None
    solver: Literal["euler", "heun", "midpoint"] = "euler"
    guidance: float = Field(default=7.0, ge=0)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = Field(default=0.0, ge=0)
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = Field(default=0, ge=0)
    first_block: Literal["clean-repaint", "partial-repaint", "left-pad", "right-pad"] = (
        "clean-repaint"
    )
    repaint_times: int = 1
    repaint_fraction: float = 1.0
    # Of LLaDA: passes a continuation (0: one a token), tokens of a semi-autoregressive block (0: all).
    unmask_steps: int = Field(default=0, ge=0)
    unmask_block: int = Field(default=0, ge=0)
    compat: Literal["none", "released"] = "none"
    dtype: Literal["auto", "stored", "float32", "bfloat16"] = "auto"
    items_per_part: int = Field(default=16, ge=1)
    batch_size: int = runtime(64, ge=1)

    @model_validator(mode="after")
    def _options_are_possible(self) -> SampleSettings:
        self.options(())
        return self

    def options(self, stop_ids: tuple[int, ...]) -> SamplingOptions:
        """The engine's options."""
        penalty = self.repetition_penalty
        if penalty is None:
            penalty = 1.1 if self.compat == "released" else 1.0
        shared = self.model_dump(
            exclude={"repetition_penalty", "grid", "dtype", "items_per_part", "batch_size"}
        )
        grid = tuple(self.grid) if self.grid else None
        return SamplingOptions(**shared, grid=grid, repetition_penalty=penalty, stop_ids=stop_ids)
