"""Settings of `cola distill`: a prior that needs few passes, from one that needs many."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from pydantic import Field, model_validator

from cola_cli.settings.fields import Settings
from cola_cli.settings.prior import CleanData, SamplingDefaults
from cola_cli.settings.sample import Sampling, interval_fits
from cola_cli.settings.training import Optimizer, Train


def _sampled(name: str) -> Any:
    """The setting of sampling of this name."""
    return copy(Sampling.model_fields[name])


class Teacher(Settings):
    """How the teacher is sampled, by Euler steps, a multiple of `passes`; the guidance becomes the student's
    own. Not given: as its artifact says."""

    steps: int = _sampled("steps")
    guidance: float = _sampled("guidance")
    guidance_interval: tuple[float, float] = _sampled("guidance_interval")
    head_temperature: float = _sampled("head_temperature")

    _interval_fits = model_validator(mode="after")(interval_fits)


class DistillSettings(Settings):
    """Everything that `cola distill` can be told."""

    passes: int = Field(
        default=4, ge=1, le=64, description="Passes of the student over a block: its solver steps."
    )
    teacher: Teacher = Teacher()
    data: CleanData = CleanData()
    optim: Optimizer = Optimizer()
    sampling: SamplingDefaults = Field(
        default=SamplingDefaults(),
        description="Defaults of `cola sample`: steps are `passes`, guidance is 1.",
    )
    train: Train = Train()

    @model_validator(mode="before")
    @classmethod
    def _sampled_as_trained(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        made_for = {
            "steps": values.get("passes", cls.model_fields["passes"].default),
            "guidance": 1.0,
        }
        given = values.get("sampling") or {}
        given = given.model_dump() if isinstance(given, SamplingDefaults) else given
        for name, value in made_for.items():
            if given.get(name) not in (None, value):
                raise ValueError(f"sampling.{name} of a student is {value}, not {given[name]}")
        return values | {"sampling": {**given, **made_for}}

    @model_validator(mode="after")
    def _steps_divide(self) -> DistillSettings:
        if self.teacher.steps % self.passes:
            raise ValueError(
                f"teacher.steps {self.teacher.steps} must be a multiple of passes {self.passes}"
            )
        return self


def settings_of_teacher(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a student takes over of the sampling settings that its teacher was stored with."""
    known = Teacher.model_fields
    return {
        "teacher": {name: value for name, value in stored.items() if name in known},
        "sampling": {k: v for k, v in stored.items() if k in ("temperature", "history")},
    }
