"""Networks in artifacts: `NAME/config.json` beside `NAME/model.safetensors`."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cola_cli.artifacts import Artifact, Writer
from cola_cli.artifacts.manifest import pretty_json
from cola_cli.artifacts.reading import read_json, reason, shown
from cola_cli.errors import DamagedArtifact
from cola_cli.models.config import PriorConfig, TextVAEConfig, TransformerConfig
from cola_cli.models.prior import Prior
from cola_cli.models.rotary import rotary_frequencies
from cola_cli.models.text_vae import TextVAE
from cola_cli.models.transformer import Transformer

CONFIG_LIMIT = 1 << 20  # bytes
TRANSFORMER = "transformer"  # the folder of a baseline's network


def network_files(*names: str) -> tuple[str, ...]:
    """The files of networks of these names."""
    return tuple(
        f"{name}/{file}" for name in names for file in ("config.json", "model.safetensors")
    )


def write_network(writer: Writer, name: str, state: dict[str, Tensor], config: Any) -> None:
    """Write the weights and the config of a network."""
    with writer.file(f"{name}/model.safetensors") as temporary:
        save_file({key: value.contiguous() for key, value in state.items()}, temporary)
    writer.write(f"{name}/config.json", pretty_json(config.document()))


def load_vae(artifact: Artifact) -> TextVAE:
    """The Text VAE of a vae, latents or prior artifact, on the CPU, in its stored precision."""
    config = vae_config(artifact)
    with torch.device("meta"):
        vae = TextVAE(config)
    _load(artifact, "vae", vae)
    vae.frequencies = rotary_frequencies(config.head_dim, config.rope_theta)
    return vae


def load_prior(artifact: Artifact) -> Prior:
    """The prior of a prior artifact, on the CPU, in its stored precision."""
    with torch.device("meta"):
        prior = Prior(prior_config(artifact))
    _load(artifact, "prior", prior)
    return prior


def load_transformer(artifact: Artifact) -> Transformer:
    """The network of an autoregressive or llada artifact, on the CPU, in its stored precision."""
    config = transformer_config(artifact)
    with torch.device("meta"):
        network = Transformer(config)
    _load(artifact, TRANSFORMER, network)
    network.frequencies = rotary_frequencies(config.head_dim, config.rope_theta)
    return network


def vae_config(artifact: Artifact) -> TextVAEConfig:
    """The shape of the Text VAE in an artifact."""
    config: TextVAEConfig = _config(artifact, "vae", TextVAEConfig)
    return config


def prior_config(artifact: Artifact) -> PriorConfig:
    """The shape of the prior in an artifact."""
    config: PriorConfig = _config(artifact, "prior", PriorConfig)
    return config


def transformer_config(artifact: Artifact) -> TransformerConfig:
    """The shape of the network in an autoregressive or llada artifact."""
    config: TransformerConfig = _config(artifact, TRANSFORMER, TransformerConfig)
    return config


def _config(artifact: Artifact, name: str, kind: Any) -> Any:
    path = artifact.file(f"{name}/config.json")
    try:
        return kind.model_validate(read_json(path, CONFIG_LIMIT), strict=True)
    except ValueError as error:
        raise DamagedArtifact(
            f"{path} is no configuration of a network ({reason(error)}).",
            "Restore it from a copy, or run the stage that made it again with --overwrite.",
        ) from error


def _load(artifact: Artifact, name: str, network: nn.Module) -> None:
    path = artifact.file(f"{name}/model.safetensors")
    try:
        # Copies: matrix products on the mapped file's memory, otherwise aligned, can round differently.
        state = {key: value.clone() for key, value in load_file(path).items()}
        network.load_state_dict(state, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise DamagedArtifact(
            f"{path} does not hold the weights that its config.json describes"
            f" ({shown(' '.join(str(error).split()))}).",
            "Restore it from a copy, or run the stage that made it again with --overwrite.",
        ) from error
