"""cola train ar, cola train llada: tokens -> a baseline that is matched to a prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cola_cli.artifacts import Artifact, Identity, Output
from cola_cli.artifacts.reading import reason
from cola_cli.cost.training import Cost, masked_diffusion_cost, next_token_cost, training_plan
from cola_cli.errors import UsageError
from cola_cli.models.config import PriorConfig, TransformerConfig, matched_sizes
from cola_cli.reporting import Reporter
from cola_cli.settings import result_settings
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.training import Train
from cola_cli.stages.outcome import Outcome, place, up_to_date

Baseline = Literal["autoregressive", "llada"]
STAGES: dict[Baseline, str] = {"autoregressive": "train ar", "llada": "train llada"}


def model_config(kind: Baseline, tokens: Artifact, settings: BaselineSettings) -> TransformerConfig:
    """The network that these settings ask for on these tokens."""
    vocabulary = tokens.manifest.statistics["vocab_size"]
    try:
        return TransformerConfig(
            vocab_size=vocabulary, causal=kind == "autoregressive", **settings.model.model_dump()
        )
    except ValueError as error:
        raise UsageError(f"baseline.model: {reason(error)}.", "Choose other sizes.") from error


def matched_settings(prior_path: Path) -> dict[str, Any]:
    """What a baseline shares with a prior: width, depth for as many parameters, optimiser, run.

    Raises InputError when the path is no prior artifact.
    """
    from cola_cli.weights.configs import prior_config

    prior = Artifact.open(prior_path, "prior")
    recorded = prior.manifest.settings
    shared = {table: recorded[table] for table in ("optim", "train") if table in recorded}
    return {"model": matched_sizes(prior_config(prior))} | shared


def match_report(prior_path: Path, config: TransformerConfig) -> dict[str, Any]:
    """How well a baseline matches a prior: parameters as the paper counts them, and their ratio."""
    from cola_cli.weights.configs import prior_config

    prior = prior_config(Artifact.open(prior_path, "prior")).parameter_count()
    core = config.core_parameter_count()
    return {"matched_to": prior, "core_parameters": core, "match_ratio": core / prior}


def training_cost(kind: Baseline, config: TransformerConfig, train: Train, length: int) -> Cost:
    """What training on sequences of `length` tokens takes."""
    cost = next_token_cost if kind == "autoregressive" else masked_diffusion_cost
    return cost(config, train, length)


def matched_to(config: PriorConfig, settings: PriorSettings) -> dict[str, Any]:
    """The settings that a baseline shares with a prior: width, depth, optimiser, run."""
    recorded = settings.model_dump()
    return {"model": matched_sizes(config), "optim": recorded["optim"], "train": recorded["train"]}


def plan_baseline(
    kind: Baseline, tokens_path: Path, settings: BaselineSettings, device: str = "auto"
) -> dict[str, Any]:
    """What training would take: parameters, memory, operations, steps. Touches nothing."""
    tokens = Artifact.open(tokens_path, "tokens")
    config = model_config(kind, tokens, settings)
    length = tokens.manifest.statistics["seq_len"]
    cost = training_cost(kind, config, settings.train, length)
    here = place(device, settings.train)
    return training_plan(cost, settings.train, settings.optim, here, length)


def train_baseline(
    kind: Baseline,
    tokens_path: Path,
    output_path: Path,
    settings: BaselineSettings,
    reporter: Reporter,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Train a baseline on a tokens artifact into `output_path`, going on where an earlier run stopped.

    The rows of every step are those that the prior sees with the same train.data_seed.
    """
    tokens = Artifact.open(tokens_path, "tokens")
    config = model_config(kind, tokens, settings)
    chosen = result_settings(settings)
    if kind == "autoregressive":
        del chosen["masking"]
    identity = Identity(
        stage=STAGES[kind], settings=chosen, inputs={"tokens": tokens.manifest.fingerprint}
    )
    output = Output.open(output_path, kind, identity, settings.model_dump(), overwrite)
    if output.up_to_date:
        return up_to_date(output)

    from cola_cli.stages.train import Networks, run_training
    from cola_cli.weights.configs import TRANSFORMER

    statistics = tokens.manifest.statistics
    length = statistics["seq_len"]

    def networks() -> Networks:
        from cola_cli.models.transformer import Transformer
        from cola_cli.training.objectives.baselines import MaskedDiffusion, NextToken
        from cola_cli.training.objectives.objective import Objective

        network = Transformer(config)
        objective: Objective
        if kind == "autoregressive":
            objective = NextToken(network, length)
        else:
            objective = MaskedDiffusion(network, length, settings.masking.least)
        return Networks(objective, {TRANSFORMER: (network, config)})

    return run_training(
        output,
        tokens,
        networks,
        settings.train,
        settings.optim,
        reporter,
        device,
        threads,
        trained=(TRANSFORMER,),
        copied=("tokenizer.json",),
        cost=training_cost(kind, config, settings.train, length),
        keep={
            "core_parameters": config.core_parameter_count(),
            "seq_len": length,
            "end_of_text_id": statistics["end_of_text_id"],
        },
    )
