"""Settings of the training loop, the same for every model that cola trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cola_cli.models.config import later
from cola_cli.settings.fields import Settings, runtime, timeout_of_ranks


class Optimizer(Settings):
    """Optimiser and learning rate; the defaults are the paper's recipe (Cola DLM paper, training setup)."""

    name: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: the matrices of the blocks by Muon, everything else by AdamW.",
    )
    lr: float = Field(default=1.5e-4, gt=0, description="Peak learning rate of AdamW.")
    lr_start: float = Field(default=1e-6, ge=0, description="Learning rate of the first step.")
    lr_end: float = Field(default=1e-5, ge=0, description="Learning rate of the last step.")
    warmup_steps: int = Field(default=5000, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["cosine", "constant", "constant-then-decay"] = Field(
        default="cosine", description="Learning rate after the warm-up."
    )
    decay_until: int = Field(
        default=0, ge=0, description="Step by which the decay ends; 0: train.steps."
    )
    decay_fraction: float = Field(
        default=0.2, gt=0, le=1, description="Share of the run that constant-then-decay decays."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW: decay of the first moment.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW: decay of the second moment.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW: added to the denominator.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay.")
    decay: Literal["all", "matrices"] = Field(
        default="all",
        description="Parameters that decay: all, as in the paper, or all but norms, biases and embeddings.",
    )
    clip: float = Field(
        default=1.0, ge=0, description="Largest norm of the gradient; 0: no clipping."
    )
    muon_lr: float = Field(default=0.0, ge=0, description="Learning rate of Muon; 0: lr.")
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="Momentum of Muon.")
    muon_scale: Literal["spectral", "adamw"] = Field(
        default="adamw",
        description="Factor on Muon's update. spectral: sqrt(max(1, rows/columns)); adamw:"
        " 0.2 sqrt(max(rows, columns)), the usual size of AdamW's.",
    )


class Train(Settings):
    """Length of the run, batches, validation, checkpoints, precision; the seeds are the paper's."""

    steps: int = Field(default=1000, ge=1, description="Steps of the run.")
    batch_size: int = Field(default=8, ge=1, description="Sequences a step, over all processes.")
    micro_batch: int = runtime(
        0,
        ge=0,
        description="Sequences at once in one process, 0: all of its share. Smaller needs less memory."
        " On a CPU one process computes at least 256 tokens at once.",
    )
    seed: int = Field(default=66, ge=0, description="Seed of initial weights and noise.")
    data_seed: int = Field(default=6198, ge=0, description="Seed of the order of the sequences.")
    shuffle_window: int = Field(
        default=65536, ge=1, description="Sequences that are shuffled together."
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto",
        description="auto: bf16 autocast with float32 weights on a GPU, float32 on a CPU.",
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the averaged weights (EMA); 0, as in the paper: no averaging.",
    )
    log_every: int = Field(default=10, ge=1, description="Steps between logged metrics.")
    validate_every: int = Field(default=200, ge=1, description="Steps between validations.")
    validation_sequences: int = Field(default=64, ge=1, description="Sequences of a validation.")
    checkpoint_every: int = runtime(200, ge=1, description="Steps between checkpoints.")
    keep_last: int = runtime(2, ge=1, description="Newest checkpoints to keep.")
    keep_every: int = runtime(
        0, ge=0, description="Keep every checkpoint whose step is a multiple; 0: none of them."
    )
    keep_state: bool = runtime(
        True,
        description="Keep the state from which --extend goes on, optimiser and averages too, in the finished"
        " artifact: about three times its weights, `kept_bytes` of --dry-run.",
    )
    # These may change between runs, so that a run that stopped can go on.
    on_bad_step: Literal["stop", "skip"] = runtime(
        "stop",
        description="After a loss or gradient that is not finite, or a spike of the gradient's norm.",
    )
    spike_factor: float = Field(
        default=0.0,
        ge=0,
        description="A spike is a norm above this multiple of its average; 0: only values that are not finite"
        " are bad.",
    )
    skip_limit: int = runtime(100, ge=1, description="Bad steps that may be skipped.")
    compile: bool = runtime(False, description="Compile the network with torch.compile.")
    activation_checkpointing: bool = runtime(
        False, description="Compute activations again in the backward pass: less memory, more time."
    )
    parallel: Literal["ddp", "fsdp"] = runtime(
        "ddp",
        description="With several processes. ddp: each has all weights; fsdp: weights are sharded.",
    )
    timeout: float = timeout_of_ranks()

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Train:
        if self.micro_batch > self.batch_size:
            raise ValueError("train.micro_batch is larger than train.batch_size")
        return self


class Lora(Settings):
    """Low-rank adapters (LoRA) of a model that `--from` names: only they are trained."""

    rank: int = later(
        0, ge=0, le=1 << 14, description="Rank of the adapters. 0: none, all weights are trained."
    )
    alpha: float = later(16.0, gt=0, description="Adapters count alpha / rank times.")
    targets: Literal["attention", "blocks"] = later(
        "blocks",
        description="Which linear layers of the blocks have one: those of attention, or of the feed-forward"
        " layers as well.",
    )

    @property
    def scale(self) -> float:
        """The factor on what an adapter adds to its weight."""
        return self.alpha / self.rank


class Mask(Settings):
    """The masked-token loss: part of the tokens is replaced by the extra embedding row."""

    weight: float = Field(default=0.1, ge=0, description="Weight of the loss; 0: off.")
    fraction: float = Field(default=0.15, gt=0, lt=1, description="Share of tokens masked.")
    # From the first step on it keeps a small VAE from learning to reconstruct.
    start: int = Field(default=0, ge=0, description="Step before which the loss is off.")
    ramp: int = Field(
        default=0, ge=0, description="Steps over which it then grows linearly to `weight`."
    )
