"""What can be chosen about generation. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FirstBlock = Literal["clean-repaint", "partial-repaint", "left-pad", "right-pad"]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How blocks are denoised and tokens chosen.

    steps: of the solver a block; grid: descending times from 1 to 0 instead of even steps.
    guidance: s in u + s (c - u); guidance_interval: times t in [0, 1] where it acts.
    temperature: 0 is greedy. repetition_penalty: on tokens generated in earlier blocks.
    first_block: how a prompt that ends inside a block conditions it; repaint_times and repaint_fraction are
    the two parameters of partial repaint.
    unmask_steps, unmask_block: of a masked-diffusion baseline; passes a continuation (0: one a token) and
    tokens of a semi-autoregressive block (0: the whole continuation).
    compat: "released" imitates the released loop: timesteps rounded to bf16, budget counted in blocks with
    the re-decoded prompt, no cut at the end of text, noise seeded by item and block.
    """

    max_new_tokens: int | None = 64
    steps: int = 16
    grid: tuple[float, ...] | None = None
    solver: Literal["euler", "heun", "midpoint"] = "euler"
    guidance: float = 7.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    first_block: FirstBlock = "clean-repaint"
    repaint_times: int = 1
    repaint_fraction: float = 1.0
    unmask_steps: int = 0
    unmask_block: int = 0
    compat: Literal["none", "released"] = "none"

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        _require(self.guidance >= 0, f"guidance must not be negative, not {self.guidance}")
        _require(self.temperature >= 0, f"temperature must not be negative, not {self.temperature}")
        _require(
            self.top_k is None or self.top_k >= 1, f"top_k must be at least 1, not {self.top_k}"
        )
        top_p = self.top_p
        _require(top_p is None or 0 < top_p <= 1, f"top_p must be in (0, 1], not {top_p}")
        _require(
            self.repetition_penalty > 0,
            f"repetition_penalty must be positive, not {self.repetition_penalty}",
        )
        budget = self.max_new_tokens
        _require(budget is None or budget >= 1, f"max_new_tokens must be positive, not {budget}")
        low, high = self.guidance_interval
        _require(0 <= low <= high <= 1, f"guidance_interval {low}, {high} is none in [0, 1]")
        _require(
            self.repaint_times >= 1, f"repaint_times must be positive, not {self.repaint_times}"
        )
        _require(
            0 <= self.repaint_fraction <= 1,
            f"repaint_fraction must be in [0, 1], not {self.repaint_fraction}",
        )
        for name in ("unmask_steps", "unmask_block"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} must not be negative, not {value}")
        if self.grid is not None:
            falling = all(a > b for a, b in zip(self.grid, self.grid[1:], strict=False))
            ends = len(self.grid) >= 2 and self.grid[0] == 1.0 and self.grid[-1] == 0.0
            _require(falling and ends, f"grid must fall from 1 to 0, not {self.grid}")
        if self.first_block == "partial-repaint":
            _require(self.solver == "euler", "partial repaint is defined for the Euler solver")


def unmask_blocks(options: SamplingOptions, budget: int) -> Iterator[tuple[int, int, int]]:
    """Start, stop and passes of each semi-autoregressive block of a continuation of `budget` tokens."""
    size = options.unmask_block or budget
    passes = options.unmask_steps or budget
    for start in range(0, budget, size):
        stop = min(start + size, budget)
        yield start, stop, max(1, round(passes * (stop - start) / budget))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
