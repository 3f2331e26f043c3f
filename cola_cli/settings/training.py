"""Settings of the training engine, the same for every model that cola trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cola_cli.settings.resolve import Settings, runtime


class Optimizer(Settings):
    """Optimiser and learning rate; the defaults are the paper's recipe (Cola DLM paper, training setup)."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=1.5e-4, gt=0)
    lr_start: float = Field(default=1e-6, ge=0)
    lr_end: float = Field(default=1e-5, ge=0)
    warmup_steps: int = Field(default=5000, ge=0)
    schedule: Literal["cosine", "constant", "constant-then-decay"] = "cosine"
    # The steps by which the decay ends; 0: train.steps.
    decay_until: int = Field(default=0, ge=0)
    # Share of the run that constant-then-decay spends decaying.
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    # The paper decays every parameter; `matrices` spares norms, biases and embeddings.
    decay: Literal["all", "matrices"] = "all"
    clip: float = Field(default=1.0, ge=0)  # of the gradient's norm; 0: no clipping
    # Muon moves the matrices of the blocks, AdamW everything else at `lr`. 0: same as `lr`.
    muon_lr: float = Field(default=0.0, ge=0)
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    # `spectral`: sqrt(max(1, rows/columns)); `adamw`: 0.2 sqrt(max(rows, columns)), AdamW's usual size.
    muon_scale: Literal["spectral", "adamw"] = "adamw"


class Train(Settings):
    """Length of the run, batches, validation, checkpoints, precision."""

    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=8, ge=1)  # sequences a step, over all processes
    # Sequences at once in one process; 0: all of its share. Smaller needs less memory.
    micro_batch: int = runtime(0, ge=0)
    seed: int = Field(default=66, ge=0)
    data_seed: int = Field(default=6198, ge=0)
    shuffle_window: int = Field(default=65536, ge=1)  # sequences
    # auto: bf16 autocast with float32 weights on a GPU, float32 on a CPU.
    precision: Literal["auto", "float32", "bf16"] = "auto"
    ema_decay: float = Field(default=0.0, ge=0, lt=1)  # 0: no averaged weights, as the paper
    log_every: int = Field(default=10, ge=1)
    validate_every: int = Field(default=200, ge=1)
    validation_sequences: int = Field(default=64, ge=1)
    checkpoint_every: int = runtime(200, ge=1)
    keep_last: int = runtime(2, ge=1)
    keep_every: int = runtime(0, ge=0)  # keep every checkpoint whose step divides by this; 0: none
    # A loss or gradient that is not finite, or a gradient norm above `spike_factor` times its average.
    # Free to change between runs, so that a run that stopped can go on.
    on_bad_step: Literal["stop", "skip"] = runtime("stop")
    spike_factor: float = Field(default=0.0, ge=0)  # 0: only what is not finite is bad
    skip_limit: int = runtime(100, ge=1)
    compile: bool = runtime(False)
    activation_checkpointing: bool = runtime(False)
    # Beyond one process: ddp copies the weights to every process, fsdp spreads them.
    parallel: Literal["ddp", "fsdp"] = runtime("ddp")

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Train:
        if self.micro_batch > self.batch_size:
            raise ValueError("train.micro_batch is larger than train.batch_size")
        return self


class Mask(Settings):
    """The masked-token loss: part of the tokens is replaced by the extra embedding row."""

    weight: float = Field(default=0.1, ge=0)
    fraction: float = Field(default=0.15, gt=0, lt=1)
    # The loss is off before `start` and then grows linearly to `weight` over `ramp` steps: from the first
    # step on it keeps a small VAE from learning to reconstruct.
    start: int = Field(default=0, ge=0)
    ramp: int = Field(default=0, ge=0)
