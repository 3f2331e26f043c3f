"""A baseline matched to a prior: the same width, depth for as many parameters, optimiser, steps, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cola_cli.artifacts import Artifact
from cola_cli.cost.training import Cost
from cola_cli.models.config import PriorConfig, matched_sizes
from cola_cli.settings.prior import PriorSettings
from cola_cli.weights.configs import prior_config


def matched_settings(prior_path: Path) -> dict[str, Any]:
    """The settings that a baseline shares with a trained prior.

    Raises InputError when the path is not a prior artifact.
    """
    prior = Artifact.open(prior_path, "prior")
    recorded = prior.manifest.settings
    shared = {table: recorded[table] for table in ("optim", "train") if table in recorded}
    return {"model": matched_sizes(prior_config(prior))} | shared


def planned_settings(config: PriorConfig, settings: PriorSettings) -> dict[str, Any]:
    """The settings that a baseline shares with a prior that is not trained yet."""
    recorded = settings.model_dump()
    return {"model": matched_sizes(config), "optim": recorded["optim"], "train": recorded["train"]}


def match_report(prior_path: Path, cost: Cost) -> dict[str, Any]:
    """How well a baseline matches a prior: parameters as the paper counts them, and their ratio."""
    prior = prior_config(Artifact.open(prior_path, "prior")).core_parameter_count()
    core = cost.core_parameters
    return {"matched_to": prior, "core_parameters": core, "match_ratio": core / prior}
