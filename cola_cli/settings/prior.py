"""Settings of `cola train prior` (stage 2 of the Cola DLM paper)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field, model_validator

from cola_cli.models.config import PriorShape, later
from cola_cli.settings.fields import Settings, runtime
from cola_cli.settings.sample import Sampling
from cola_cli.settings.training import Lora, Mask, Optimizer, Train


class Timesteps(Settings):
    """The distribution of the training timesteps, one per block; logit-normal around 1 is the paper's."""

    law: Literal["logit-normal", "uniform", "shifted", "decided"] = Field(
        default="logit-normal",
        description="Distribution of t in [0, 1]. decided: as fast as noise hides which token a latent is.",
    )
    loc: float | None = Field(
        default=None, description="Mean of logit(t) of logit-normal. Unset: 1 + 0.5 ln(d / 16)."
    )
    scale: float = Field(
        default=1.0, gt=0, description="Standard deviation of logit(t) of logit-normal."
    )
    shift: float = Field(
        default=1.0, gt=0, description="s of shifted: s t / (1 + (s - 1) t) of a uniform t."
    )


class CleanData(Settings):
    """The clean latents of training."""

    clean: Literal["sample", "mean"] = Field(
        default="sample", description="z_0: a sample of the posterior, or its mean."
    )
    partly_clean: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Probability that a random left part of a noisy block is clean, at t = 0 and without"
        " loss.",
    )


class FlowData(CleanData):
    """What the prior is trained on."""

    block_sizes: tuple[int, ...] = Field(
        default=(),
        description="Each sequence takes one of these at random. Empty: always model.block_size.",
    )
    block_curriculum: tuple[tuple[int, int], ...] = later(
        (),
        description="Pairs of a block size and a number of updates that training begins with, such as"
        " [[1, 500]]; together at most a third of train.steps.",
    )
    noisy_copies: int = later(
        1,
        ge=1,
        le=1024,
        description="Noisy copies of a sequence that share one pass over its clean copy.",
    )
    noisy_share: float = later(
        1.0,
        gt=0,
        le=1,
        description="Share of a sequence's blocks that a noisy copy holds: a run of them, in each update the"
        " next one. Fewer make an update cheaper, and teach the clean copy as much.",
    )
    history_noise: float = later(
        0.0,
        ge=0,
        lt=1,
        description="Of a sequence the clean copy is at a random time t up to this, as if it were 0.",
    )


class Loss(Settings):
    """Weights of terms of the loss, which count where there is such a term: most are of joint training."""

    vae: float = Field(default=1.0, ge=0, description="Weight of the Text VAE's terms.")
    flow: float = Field(default=1.0, ge=0, description="Weight of the flow-matching term.")
    reference: float = Field(
        default=0.1, ge=0, description="Weight of the KL divergence to the reference posterior."
    )
    beta: float = Field(default=1e-3, ge=0, description="Weight of the entropy term E[log q].")
    flow_gradient: Literal["detach", "latent"] = Field(
        default="detach",
        description="latent: the flow loss reaches the encoder through z_t; history and target are always"
        " detached.",
    )
    next_token: float = later(
        0.0,
        ge=0,
        description="Weight of the cross-entropy of a token head on the clean copy: of the next token, or of"
        " the one a block later without causal_history.",
    )
    decoder: float = later(
        0.0,
        ge=0,
        description="Weight of the cross-entropy of the frozen decoder, reading the clean estimate.",
    )


class Joint(Settings):
    """How the VAE is trained in joint training."""

    vae_lr_ratio: float = Field(
        default=1.0, ge=0, description="Learning rate of the VAE / that of the prior."
    )
    from_scratch: bool = Field(
        default=False, description="A newly initialised VAE instead of the trained one."
    )
    cycle: int = Field(
        default=0,
        ge=0,
        description="Interval schedule: in every `cycle` steps the VAE is trained in the first `moving` ones."
        " 0: always.",
    )
    moving: int = Field(
        default=0, ge=0, description="Steps of a cycle in which the VAE is trained."
    )


def _stored(name: str) -> Any:
    """The setting of sampling of this name, unset unless a prior is stored with it."""
    field = Sampling.model_fields[name]
    bounds = {kind: value for bound in field.metadata for kind, value in asdict(bound).items()}
    return runtime(None, description=field.description, **bounds)


class SamplingDefaults(Settings):
    """How the prior is sampled unless a flag, variable or file says otherwise; kept in its manifest."""

    steps: int | None = _stored("steps")
    eta: float | None = _stored("eta")
    guidance: float | None = _stored("guidance")
    history: Literal["generated", "re-encoded"] | None = _stored("history")
    guidance_interval: tuple[float, float] | None = _stored("guidance_interval")
    settle: int | None = _stored("settle")
    head_temperature: float | None = _stored("head_temperature")
    temperature: float | None = _stored("temperature")


class PriorSettings(Settings):
    """Everything that `cola train prior` can be told."""

    mode: Literal["frozen", "joint"] = Field(
        default="frozen", description="frozen: train the prior alone; joint: the VAE as well."
    )
    model: PriorShape = PriorShape()
    timesteps: Timesteps = Timesteps()
    data: FlowData = FlowData()
    loss: Loss = Loss()
    mask: Mask = Mask()
    joint: Joint = Joint()
    lora: Lora = Lora()
    optim: Optimizer = Optimizer()
    sampling: SamplingDefaults = Field(
        default=SamplingDefaults(), description="Defaults of `cola sample` for this prior."
    )
    train: Train = Train()

    @model_validator(mode="after")
    def _decoder_reads_all(self) -> PriorSettings:
        if self.loss.decoder and self.data.noisy_share < 1:
            raise ValueError("loss.decoder reads whole sequences: it needs data.noisy_share = 1")
        return self
