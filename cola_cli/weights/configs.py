"""Shapes of the networks in an artifact, `NAME/config.json`, read without their weights. Needs no torch."""

from __future__ import annotations

from typing import Literal, TypeVar

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.checks import RESTORE
from cola_cli.artifacts.reading import read_record
from cola_cli.errors import DamagedArtifact
from cola_cli.models.config import PriorConfig, Shape, TextVAEConfig, TransformerConfig

VAE, PRIOR, TRANSFORMER = "vae", "prior", "transformer"  # folders of networks in an artifact

ADAPTERS = "adapters.safetensors"  # beside the weights that they are merged into

Config = TypeVar("Config", bound=Shape)
Precision = Literal["stored", "float32", "bfloat16"]  # of written weights


def network_files(*names: str) -> tuple[str, ...]:
    """The files of networks of these names."""
    return tuple(
        f"{name}/{file}" for name in names for file in ("config.json", "model.safetensors")
    )


def read_config(artifact: Artifact, name: str, kind: type[Config]) -> Config:
    """The config of the network `name`. Raises DamagedArtifact unless it is one of this kind."""
    return read_record(artifact.file(f"{name}/config.json"), kind, RESTORE, DamagedArtifact)


def vae_config(artifact: Artifact) -> TextVAEConfig:
    """The shape of the Text VAE in a vae, latents or prior artifact."""
    return read_config(artifact, VAE, TextVAEConfig)


def prior_config(artifact: Artifact) -> PriorConfig:
    """The shape of the prior in a prior artifact."""
    return read_config(artifact, PRIOR, PriorConfig)


def transformer_config(artifact: Artifact) -> TransformerConfig:
    """The shape of the transformer in a baseline's artifact."""
    return read_config(artifact, TRANSFORMER, TransformerConfig)
