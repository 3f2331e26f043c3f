"""cola train prior: latents -> block-causal prior (stage 2 of the Cola DLM paper), VAE frozen or joint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cola_cli.artifacts import Artifact, Identity, Output
from cola_cli.artifacts.reading import reason
from cola_cli.cost.training import prior_cost, training_plan
from cola_cli.errors import InputError, UsageError
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.reporting import Reporter
from cola_cli.settings import result_settings
from cola_cli.settings.prior import PriorSettings
from cola_cli.stages.outcome import Outcome, place, up_to_date

STAGE = "train prior"
VAE_FILES = ("vae/config.json", "vae/model.safetensors")


def model_config(latents: Artifact, settings: PriorSettings) -> PriorConfig:
    """The prior that these settings ask for on these latents."""
    positions, channels = latents.manifest.statistics["latent_shape"]
    head = 0
    if settings.model.prediction == "tokens":
        head = latents.manifest.statistics["vocab_size"]
        require_head_fits(settings, positions, latents.manifest.statistics["seq_len"])
    try:
        config = PriorConfig(latent_dim=channels, vocab_size=head, **settings.model.model_dump())
    except ValueError as error:
        raise UsageError(f"prior.model: {reason(error)}.", "Choose other sizes.") from error
    for size in (config.block_size, *settings.data.block_sizes):
        if size < 1 or positions % size:
            raise UsageError(
                f"prior: sequences of {positions} latents are no multiple of block size {size}.",
                "Choose another block size, or tokenize with another --seq-len.",
            )
    if settings.data.block_sizes and settings.train.parallel == "fsdp":
        raise UsageError(
            "prior.data.block_sizes and train.parallel = fsdp exclude each other: processes would differ"
            " in the number of passes.",
            "Use train.parallel = ddp.",
        )
    return config


def require_head_fits(settings: PriorSettings, positions: int, length: int) -> None:
    """Raise UsageError where a token head cannot say what a latent holds."""
    if positions != length:
        raise UsageError(
            f"prior.model.prediction = tokens needs one latent per token; {length} tokens have"
            f" {positions} latents here.",
            "Train a VAE with patch_size 1, or set prior.model.prediction=velocity.",
        )
    if settings.mode == "joint":
        raise UsageError(
            "prior.model.prediction = tokens and mode = joint exclude each other: the codes of the tokens"
            " would move.",
            "Use mode = frozen, or set prior.model.prediction=velocity.",
        )


def vae_config(latents: Artifact) -> TextVAEConfig:
    """The shape of the Text VAE that made these latents."""
    from cola_cli.weights.configs import vae_config

    return vae_config(latents)


def plan_prior(latents_path: Path, settings: PriorSettings, device: str = "auto") -> dict[str, Any]:
    """What training would take: parameters, memory, operations, steps. Touches nothing."""
    latents = Artifact.open(latents_path, "latents")
    config = model_config(latents, settings)
    length = latents.manifest.statistics["seq_len"]
    cost = prior_cost(config, vae_config(latents), settings, length)
    here = place(device, settings.train)
    return training_plan(cost, settings.train, settings.optim, here, length)


def require_maker(latents: Artifact, vae_path: Path) -> None:
    """Raise InputError unless the named VAE is the one that made the latents."""
    vae = Artifact.open(vae_path, "vae")
    if latents.manifest.identity.inputs.get("vae") != vae.manifest.fingerprint:
        raise InputError(
            f"{latents.path} was encoded by another VAE than {vae_path}.",
            "Name the VAE that `cola encode` used, or encode again with this one.",
        )


def train_prior(
    latents_path: Path,
    output_path: Path,
    settings: PriorSettings,
    reporter: Reporter,
    vae_path: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Train the prior on a latents artifact into `output_path`, going on where an earlier run stopped.

    Joint mode starts from the VAE that made the latents, which lies beside them; `vae_path` only
    confirms it.
    """
    latents = Artifact.open(latents_path, "latents")
    config = model_config(latents, settings)
    if vae_path is not None:
        require_maker(latents, vae_path)
    identity = Identity(
        stage=STAGE,
        settings=result_settings(settings),
        inputs={"latents": latents.manifest.fingerprint},
    )
    output = Output.open(output_path, "prior", identity, settings.model_dump(), overwrite)
    if output.up_to_date:
        return up_to_date(output)

    from cola_cli.stages.train import Networks, run_training

    statistics = latents.manifest.statistics
    joint = settings.mode == "joint"

    def networks() -> Networks:
        import numpy as np

        from cola_cli.corpus.sequences import Sequences
        from cola_cli.models.prior import Prior
        from cola_cli.models.text_vae import TextVAE
        from cola_cli.training.objectives.flow_matching import (
            FlowMatching,
            JointTraining,
            token_codes,
        )
        from cola_cli.weights.artifact import load_vae

        made_by = vae_config(latents)
        variance = np.add(statistics["channel_variance"], statistics["posterior_variance"])
        variance *= made_by.scaling_factor**2
        prior = Prior(config)
        if config.prediction == "tokens":
            prior.codes = token_codes(Sequences(latents, "train"), made_by, config.vocab_size)
        length = statistics["seq_len"]
        if not joint:
            objective = FlowMatching(prior, settings, variance, length, made_by)
            return Networks(objective, {"prior": (prior, config)})
        vae = TextVAE(made_by) if settings.joint.from_scratch else load_vae(latents)
        return Networks(
            JointTraining(prior, vae, settings, variance, length),
            {"vae": (vae, made_by), "prior": (prior, config)},
        )

    return run_training(
        output,
        latents,
        networks,
        settings.train,
        settings.optim,
        reporter,
        device,
        threads,
        trained=("vae", "prior") if joint else ("prior",),
        copied=("tokenizer.json",) if joint else ("tokenizer.json", *VAE_FILES),
        cost=prior_cost(config, vae_config(latents), settings, statistics["seq_len"]),
        keep={name: statistics[name] for name in ("seq_len", "latent_shape", "end_of_text_id")},
    )
