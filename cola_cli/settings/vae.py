"""Settings of `cola train vae` (stage 1 of the Cola DLM paper)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cola_cli.models.config import TextVAEShape
from cola_cli.settings.fields import Settings
from cola_cli.settings.training import Mask, Optimizer, Train


class TextVAELoss(Settings):
    """Reconstruction + beta KL(q(z|x) || N(0, I)) + the masked-token loss; the paper does not give beta."""

    beta: float = Field(default=1e-3, ge=0, description="Weight of the KL divergence.")
    posterior: Literal["learnable", "fixed"] = Field(
        default="learnable",
        description="fixed: log-variance is -log_snr in every channel, as the means have unit variance.",
    )
    log_snr: float = Field(default=4.5, description="log(signal / noise) of a fixed posterior.")


class VAESettings(Settings):
    """Everything that `cola train vae` can be told."""

    model: TextVAEShape = TextVAEShape()
    loss: TextVAELoss = TextVAELoss()
    mask: Mask = Mask()
    optim: Optimizer = Optimizer()
    train: Train = Train()
    validation_noise: float = Field(
        default=0.5,
        ge=0,
        description="Standard deviation of the noise on the latents in the metric accuracy_noisy.",
    )
