"""`scaling.json`: the measured points of a study along compute, with fits, for `cola report` to draw."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

CURVES = "scaling.json"

Positive = Annotated[float, Field(gt=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Measurement(_Entry):
    """One metric of one line at one point, a mean over the seeds; low and high bound it."""

    family: str
    flops: Positive
    metric: str
    value: float
    low: float | None = None
    high: float | None = None


class Fit(_Entry):
    """A fitted curve: value = coefficient * flops ** exponent."""

    family: str
    metric: str
    coefficient: float
    exponent: float


class Level(_Entry):
    """A value to compare a metric with, such as the value of real text."""

    metric: str
    name: str
    value: float


class Curves(_Entry):
    """The whole file. x: the meaning of `flops`; the metrics in `linear` have linear axes."""

    points: list[Measurement]
    fits: list[Fit] = []
    levels: list[Level] = []
    x: str = "training compute, FLOPs"
    x_log: bool = True
    linear: list[str] = []
