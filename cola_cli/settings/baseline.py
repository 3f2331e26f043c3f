"""Settings of the baselines, `cola train ar` and `cola train llada`: one table, so that they are matched."""

from __future__ import annotations

from pydantic import Field

from cola_cli.models.config import TransformerShape
from cola_cli.settings.fields import Settings
from cola_cli.settings.training import Lora, Optimizer, Train


class Masking(Settings):
    """The masks of LLaDA; the autoregressive baseline does not use them."""

    least: float = Field(
        default=1e-3,
        gt=0,
        lt=1,
        description="Smallest share of masked tokens: the loss has a factor 1/t.",
    )


class BaselineSettings(Settings):
    """Everything that `cola train ar` and `cola train llada` can be told."""

    model: TransformerShape = TransformerShape()
    masking: Masking = Masking()
    lora: Lora = Lora()
    optim: Optimizer = Optimizer()
    train: Train = Train()
