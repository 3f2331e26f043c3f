"""Settings of `cola sample`, and the part of them that the samplers themselves are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cola_cli.models.config import later
from cola_cli.settings.fields import Settings, runtime

MOST_TOKENS = 2**31 - 1  # of a continuation
GREEDY_BELOW = 1e-5  # temperatures under this are greedy, as in the released code
# what requests of one batch may differ in
OF_A_REQUEST = {
    "max_new_tokens", "guidance", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop",
    "stop_ids",
}  # fmt: skip
FirstBlock = Literal["clean-repaint", "partial-repaint", "left-pad", "right-pad"]


def interval_fits(settings: Any) -> Any:
    """The settings. Raises ValueError unless their guidance acts within [0, 1]."""
    low, high = settings.guidance_interval
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"guidance_interval must satisfy 0 <= low <= high <= 1, not ({low}, {high})"
        )
    return settings


class Sampling(Settings):
    """How blocks are denoised and tokens chosen."""

    max_new_tokens: int | None = Field(default=64, ge=1, description="Tokens of a continuation.")
    steps: int = Field(default=16, ge=1, le=10_000, description="Solver steps a block.")
    grid: tuple[float, ...] | None = Field(
        default=None, description="Descending times from 1 to 0 instead of even steps."
    )
    solver: Literal["euler", "heun", "midpoint"] = Field(
        default="euler", description="Solver of the flow's differential equation."
    )
    eta: float = later(
        0.0,
        ge=0,
        le=1,
        description="Noise that each Euler step draws afresh: 0 follows the differential equation, 1 adds as"
        " much as DDPM.",
    )
    guidance: float = Field(
        default=7.0,
        ge=0,
        le=1_000,
        description="Scale s of classifier-free guidance, u + s (c - u); 1 is off.",
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="Times t in [0, 1] at which guidance acts."
    )
    settle: int = later(
        0,
        ge=0,
        description="For a prior with a token head: a block is finished once its tokens have stayed the same,"
        " each 99 % probable, for so many passes. 0: all passes are taken.",
    )
    temperature: float = Field(
        default=0.0, ge=0, description="Temperature of the token choice; 0 is greedy."
    )
    top_k: int | None = Field(default=None, ge=1, description="Sample from the k likeliest tokens.")
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Sample from the likeliest tokens of this probability.",
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        description="On tokens generated in earlier blocks. Unset: 1.0, and 1.1 with compat = released.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of noise and token choice.")
    stop: tuple[str, ...] = later(
        (), description="Texts that end a continuation, which is cut before the first of them."
    )
    first_block: FirstBlock = Field(
        default="clean-repaint",
        description="How a prompt that ends inside a block conditions that block.",
    )
    repaint_times: int = Field(
        default=1,
        ge=1,
        le=1_000,
        description="Passes over each repainted step of partial-repaint.",
    )
    repaint_fraction: float = Field(
        default=1.0, ge=0, le=1, description="Share of the steps of partial-repaint that repaint."
    )
    unmask_steps: int = Field(
        default=0, ge=0, description="Passes of LLaDA over a continuation; 0: one for each token."
    )
    unmask_block: int = Field(
        default=0, ge=0, description="Tokens of a semi-autoregressive block of LLaDA; 0: all."
    )
    head_temperature: float = later(
        1.0,
        gt=0,
        description="Temperature of the token head of a prior that predicts tokens; below 1 is bolder.",
    )
    history: Literal["generated", "re-encoded"] = later(
        "generated",
        description="What later blocks see of a finished one: its latents, or the posterior means of its"
        " tokens.",
    )
    compat: Literal["none", "released"] = Field(
        default="none",
        description="released: as the authors' loop, with timesteps rounded to bf16, the budget counted in"
        " blocks with the re-decoded prompt, no cut at the end of text, noise seeded by item and block.",
    )

    _interval_fits = model_validator(mode="after")(interval_fits)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, stop: Any) -> Any:
        # strict validation takes no list for a tuple once Python has seen it
        return (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty text ends nothing")
        return stop

    @model_validator(mode="after")
    def _options_fit(self) -> Sampling:
        if self.grid is not None:
            falling = all(a > b for a, b in zip(self.grid, self.grid[1:], strict=False))
            if len(self.grid) < 2 or (self.grid[0], self.grid[-1]) != (1.0, 0.0) or not falling:
                raise ValueError(f"grid must fall from 1 to 0, not {self.grid}")
        if self.first_block == "partial-repaint" and self.solver != "euler":
            raise ValueError("partial repaint is defined for the Euler solver")
        if self.eta and (self.solver != "euler" or self.first_block == "partial-repaint"):
            raise ValueError(
                "eta needs the Euler solver without partial repaint; set eta = 0 for others"
            )
        if self.history == "re-encoded" and self.first_block in ("left-pad", "right-pad"):
            raise ValueError("a re-encoded history needs whole blocks; choose another first_block")
        return self


class SamplingOptions(Sampling):
    """What a sampler is given: settings, with what follows from them and from the model.

    max_new_tokens: None for as many as the given noise has. stop_ids: tokens that end a continuation.
    """

    repetition_penalty: float = Field(default=1.0, gt=0)
    stop_ids: tuple[int, ...] = ()

    @property
    def takes_likeliest(self) -> bool:
        """Whether the likeliest tokens are chosen, whatever came before."""
        return self.temperature < GREEDY_BELOW and self.repetition_penalty == 1.0

    def shared(self) -> tuple[Any, ...]:
        """What requests that share a batch agree on: all but OF_A_REQUEST, and whether guidance acts."""
        return (self.guidance != 1.0, *self.model_dump(exclude=OF_A_REQUEST).values())

    def unmask_blocks(self, budget: int) -> Iterator[tuple[int, int, int]]:
        """Start, stop and passes of each semi-autoregressive block of a continuation of `budget` tokens."""
        size = self.unmask_block or budget
        passes = self.unmask_steps or budget
        for start in range(0, budget, size):
            stop = min(start + size, budget)
            yield start, stop, max(1, round(passes * (stop - start) / budget))


class SampleSettings(Sampling):
    """Everything that `cola sample` can be told."""

    max_new_tokens: int = Field(
        default=64, ge=1, le=MOST_TOKENS, description="Tokens of a continuation."
    )
    dtype: Literal["auto", "stored", "float32", "bfloat16"] = Field(
        default="auto",
        description="Precision of the weights. auto: float32 on a CPU, where bf16 products are emulated, else"
        " stored.",
    )
    items_per_part: int = Field(
        default=16, ge=1, description="Prompts committed to an artifact together."
    )
    batch_size: int = runtime(
        64, ge=1, description="Prompts at a time; the result in float32 does not depend on it."
    )

    def options(self, stop_ids: tuple[int, ...]) -> SamplingOptions:
        """The samplers' options; `stop_ids` are the model's."""
        chosen = self.model_dump(include=set(Sampling.model_fields))
        if self.repetition_penalty is None:
            chosen["repetition_penalty"] = 1.1 if self.compat == "released" else 1.0
        return SamplingOptions(**chosen, stop_ids=stop_ids)
