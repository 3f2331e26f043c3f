"""Settings of `cola train vae` (stage 1 of the Cola DLM paper)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cola_cli.settings.resolve import Settings
from cola_cli.settings.training import Mask, Optimizer, Train


class TextVAEModel(Settings):
    """Sizes of the Text VAE; the vocabulary comes from the tokens. Defaults: the paper's."""

    encoder_layers: int = Field(default=4, ge=1)
    decoder_layers: int = Field(default=4, ge=1)
    dim: int = Field(default=1536, ge=1)
    ffn_dim: int = Field(default=6144, ge=2)
    heads: int = Field(default=12, ge=1)
    latent_dim: int = Field(default=16, ge=2)
    patch_size: int = Field(default=1, ge=1)
    block_size: int = Field(default=1, ge=1)
    norm_eps: float = Field(default=1e-6, gt=0)
    rope_theta: float = Field(default=500000.0, gt=0)


class TextVAELoss(Settings):
    """Reconstruction + beta KL(q(z|x) || N(0, I)) + the masked-token loss."""

    beta: float = Field(default=1e-3, ge=0)
    # `fixed` keeps log-variance at -log_snr in every channel (the means have unit variance).
    posterior: Literal["learnable", "fixed"] = "learnable"
    log_snr: float = 4.5


class VAESettings(Settings):
    """Everything that `cola train vae` can be told."""

    model: TextVAEModel = TextVAEModel()
    loss: TextVAELoss = TextVAELoss()
    mask: Mask = Mask()
    optim: Optimizer = Optimizer()
    train: Train = Train()
    # Standard deviation of the noise on the latents in the validation figure `accuracy_noisy`.
    validation_noise: float = Field(default=0.5, ge=0)
