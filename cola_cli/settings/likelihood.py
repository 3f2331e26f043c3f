"""Settings of `cola likelihood`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cola_cli.settings.fields import Settings


class LikelihoodSettings(Settings):
    """How texts are scored."""

    draws: int = Field(1, ge=1, le=1 << 16, description="K, posterior draws a text.")
    steps: int = Field(32, ge=1, le=10_000, description="Of the ODE solver.")
    divergence: Literal["hutchinson", "exact"] = Field(
        "hutchinson",
        description="hutchinson (one probe a solve: an estimate, no IWAE) or exact (bounds).",
    )
    seed: int = Field(0, ge=0, description="Seed of the draws.")
    text_field: str = Field("text", description="Field or column of records with the text.")
    items_per_part: int = Field(64, ge=1, description="Texts committed to an artifact together.")
