"""Settings of `cola train prior` (stage 2 of the Cola DLM paper)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cola_cli.models.config import PriorShape
from cola_cli.settings.resolve import Settings
from cola_cli.settings.training import Mask, Optimizer, Train


class Timesteps(Settings):
    """The law of the timesteps of training, one a block."""

    law: Literal["logit-normal", "uniform", "shifted"] = "logit-normal"
    loc: float | None = None  # of logit-normal; none: 1 + 0.5 ln(d / 16)
    scale: float = Field(default=1.0, gt=0)
    shift: float = Field(default=1.0, gt=0)  # of `shifted`: s t / (1 + (s - 1) t) of a uniform t


class FlowData(Settings):
    """What the prior is trained on."""

    clean: Literal["sample", "mean"] = "sample"  # z_0: a draw from the posterior, or its mean
    # Probability that a random left part of a noisy block is clean, at t = 0 and without loss.
    partly_clean: float = Field(default=0.05, ge=0, le=1)
    # Besides model.block_size: each sequence takes one of these at random. Empty: always the model's.
    block_sizes: tuple[int, ...] = ()


class JointLoss(Settings):
    """Weights of the terms of joint training; `frozen` has the flow term alone."""

    vae: float = Field(default=1.0, ge=0)
    flow: float = Field(default=1.0, ge=0)
    reference: float = Field(default=0.1, ge=0)
    beta: float = Field(default=1e-3, ge=0)  # of the entropy term E[log q]
    # The path from the flow loss through z_t into the encoder; history and target are always stopped.
    flow_gradient: Literal["detach", "latent"] = "detach"


class Joint(Settings):
    """How the VAE moves in joint training."""

    vae_lr_ratio: float = Field(default=1.0, ge=0)  # of the prior's learning rate
    from_scratch: bool = False  # a newly initialised VAE instead of the trained one
    # Interval schedule: in every `cycle` steps the VAE moves in the first `moving` ones. 0: always.
    cycle: int = Field(default=0, ge=0)
    moving: int = Field(default=0, ge=0)


class PriorSettings(Settings):
    """Everything that `cola train prior` can be told."""

    mode: Literal["frozen", "joint"] = "frozen"
    model: PriorShape = PriorShape()
    timesteps: Timesteps = Timesteps()
    data: FlowData = FlowData()
    loss: JointLoss = JointLoss()
    mask: Mask = Mask()
    joint: Joint = Joint()
    optim: Optimizer = Optimizer()
    train: Train = Train()
