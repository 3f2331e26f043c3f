"""What settings are made of: frozen models, fields that change the result and fields that do not."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cola_cli.models.config import LATER


class Settings(BaseModel):
    """Base of every settings model: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        """Whole numbers go to libraries that hold them in 64 bits."""
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ValueError("it is not below 2 ** 63")
        return value


def runtime(default: Any, **field: Any) -> Any:
    """A field that does not change the result (threads, intervals of saving), so not its identity."""
    return Field(default, json_schema_extra={"changes_result": False}, **field)


def timeout_of_ranks() -> Any:
    """The field of stages that several processes may do together."""
    return runtime(
        10.0,
        gt=0,
        le=100_000,
        description="With several processes: minutes for all to join, and for one to answer, before the"
        " others stop.",
    )


def result_settings(settings: BaseModel) -> dict[str, Any]:
    """The settings that change the result, as nested tables: the part that enters the fingerprint."""
    tree: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        value = getattr(settings, name)
        # one that came after format 1 is left out at its default, so that old fingerprints stay
        if marks.get("changes_result") is False or (marks.get(LATER) and value == field.default):
            continue
        if isinstance(value, BaseModel):
            if nested := result_settings(value):  # a table of nothing that counts is not one
                tree[name] = nested
        else:
            tree[name] = settings.model_dump(mode="json", include={name})[name]
    return tree
