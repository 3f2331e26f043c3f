"""Settings of the baselines, `cola train ar` and `cola train llada`: one table, so that they are matched."""

from __future__ import annotations

from pydantic import Field

from cola_cli.settings.resolve import Settings
from cola_cli.settings.training import Optimizer, Train


class TransformerModel(Settings):
    """Sizes of the transformer; the vocabulary comes from the tokens. Defaults: matched to the paper's."""

    layers: int = Field(default=27, ge=1)
    dim: int = Field(default=2048, ge=1)
    ffn_dim: int = Field(default=8192, ge=1)
    heads: int = Field(default=16, ge=1)
    head_dim: int = Field(default=128, ge=2)
    norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)


class Masking(Settings):
    """Of LLaDA alone."""

    # The smallest share of masked tokens: the loss has 1/t.
    least: float = Field(default=1e-3, gt=0, lt=1)


class BaselineSettings(Settings):
    """Everything that `cola train ar` and `cola train llada` can be told."""

    model: TransformerModel = TransformerModel()
    masking: Masking = Masking()
    optim: Optimizer = Optimizer()
    train: Train = Train()
