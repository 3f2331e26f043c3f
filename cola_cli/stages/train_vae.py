"""cola train vae: tokens -> Text VAE (stage 1 of the Cola DLM paper)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cola_cli.artifacts import Artifact, Identity, Output
from cola_cli.artifacts.reading import reason
from cola_cli.cost.training import text_vae_cost, training_plan
from cola_cli.errors import UsageError
from cola_cli.models.config import TextVAEConfig
from cola_cli.reporting import Reporter
from cola_cli.settings import result_settings
from cola_cli.settings.vae import VAESettings
from cola_cli.stages.outcome import Outcome, place, up_to_date

STAGE = "train vae"


def model_config(tokens: Artifact, settings: VAESettings) -> TextVAEConfig:
    """The Text VAE that these settings ask for on these tokens."""
    statistics = tokens.manifest.statistics
    try:
        config = TextVAEConfig(vocab_size=statistics["vocab_size"], **settings.model.model_dump())
    except ValueError as error:
        raise UsageError(f"vae.model: {reason(error)}.", "Choose other sizes.") from error
    step = config.patch_size * config.block_size
    if statistics["seq_len"] % step:
        raise UsageError(
            f"vae.model: sequences of {statistics['seq_len']} tokens are no multiple of"
            f" patch_size x block_size = {step}.",
            "Choose other sizes, or tokenize with another --seq-len.",
        )
    return config


def plan_vae(tokens_path: Path, settings: VAESettings, device: str = "auto") -> dict[str, Any]:
    """What training would take: parameters, memory, operations, steps. Touches nothing."""
    tokens = Artifact.open(tokens_path, "tokens")
    config = model_config(tokens, settings)
    length = tokens.manifest.statistics["seq_len"]
    cost = text_vae_cost(config, settings, length)
    here = place(device, settings.train)
    return training_plan(cost, settings.train, settings.optim, here, length)


def train_vae(
    tokens_path: Path,
    output_path: Path,
    settings: VAESettings,
    reporter: Reporter,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Train the Text VAE on a tokens artifact into `output_path`, going on where an earlier run stopped."""
    tokens = Artifact.open(tokens_path, "tokens")
    config = model_config(tokens, settings)
    identity = Identity(
        stage=STAGE,
        settings=result_settings(settings),
        inputs={"tokens": tokens.manifest.fingerprint},
    )
    output = Output.open(output_path, "vae", identity, settings.model_dump(), overwrite)
    if output.up_to_date:
        return up_to_date(output)

    from cola_cli.stages.train import Networks, run_training

    def networks() -> Networks:
        from cola_cli.models.text_vae import TextVAE
        from cola_cli.training.objectives.text_vae import TextVAEObjective, fix_log_variance

        vae = TextVAE(config)
        length = tokens.manifest.statistics["seq_len"]
        objective = TextVAEObjective(vae, settings, length)

        def finish() -> None:
            if settings.loss.posterior == "fixed":
                fix_log_variance(vae, settings.loss.log_snr)

        return Networks(objective, {"vae": (vae, config)}, finish)

    return run_training(
        output,
        tokens,
        networks,
        settings.train,
        settings.optim,
        reporter,
        device,
        threads,
        trained=("vae",),
        copied=("tokenizer.json",),
        cost=text_vae_cost(config, settings, tokens.manifest.statistics["seq_len"]),
        keep={"seq_len": tokens.manifest.statistics["seq_len"]},
    )
