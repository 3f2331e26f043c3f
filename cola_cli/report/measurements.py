"""Files beside the artifacts: figures of `cola diagnose vae --json` and points of a scaling study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cola_cli.errors import InputError

DIAGNOSES = "diagnos*.json"
SCALING = "scaling.json"
FILE_LIMIT = 16 << 20  # bytes

Positive = Annotated[float, Field(gt=0)]


class _Measured(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Diagnosis(_Measured):
    """What `cola diagnose vae --json` printed."""

    tokens: int
    accuracy: float
    accuracy_at: dict[float, float]
    log_snr: float
    kl_per_channel: list[float]
    active_channels: int


class Point(_Measured):
    """One trained model of a scaling study; low and high bound its value."""

    family: str
    flops: Positive
    metric: str
    value: float
    low: float | None = None
    high: float | None = None


class Fit(_Measured):
    """A fitted curve: value = offset + coefficient * flops ** exponent, or (flops, value) pairs."""

    family: str
    metric: str
    coefficient: float | None = None
    exponent: float | None = None
    offset: float = 0.0
    curve: list[tuple[Positive, float]] = []


class Level(_Measured):
    """A value to hold a metric against, such as that of real text."""

    metric: str
    name: str
    value: float


class Scaling(_Measured):
    """`scaling.json`. x: what the points' `flops` stand for; the metrics in `linear` have linear axes."""

    points: list[Point]
    fits: list[Fit] = []
    levels: list[Level] = []
    x: str = "training compute, FLOPs"
    x_log: bool = True
    linear: list[str] = []


def read_diagnosis(path: Path) -> Diagnosis:
    """Figures of one diagnosis. Raises InputError when the file is none."""
    return Diagnosis.model_validate(_read(path, Diagnosis))


def read_scaling(path: Path) -> Scaling:
    """Points and fits of a scaling study. Raises InputError when the file holds none."""
    return Scaling.model_validate(_read(path, Scaling))


def _read(path: Path, model: type[BaseModel]) -> BaseModel:
    remedy = "Write it again, or take it away."
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise InputError(f"{path.name} is larger than {FILE_LIMIT >> 20} MiB.", remedy)
        return model.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "document"
        raise InputError(
            f"{path.name} is not as expected ({place}: {first['msg']}).", remedy
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} cannot be read ({error}).", remedy) from error
