"""Networks in artifacts: `NAME/config.json` beside `NAME/model.safetensors`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cola_cli.artifacts import Artifact, Writer
from cola_cli.artifacts.checks import RESTORE
from cola_cli.artifacts.files import utf8_name
from cola_cli.artifacts.manifest import pretty_json
from cola_cli.errors import DamagedArtifact
from cola_cli.models.prior import Prior
from cola_cli.models.rotary import rotary_frequencies
from cola_cli.models.text_vae import TextVAE
from cola_cli.models.transformer import Transformer
from cola_cli.weights.configs import (
    PRIOR,
    TRANSFORMER,
    VAE,
    Precision,
    prior_config,
    transformer_config,
    vae_config,
)
from cola_cli.weights.tensors import require_finite

ConfigT = TypeVar("ConfigT")
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def write_network(writer: Writer, name: str, state: dict[str, Tensor], config: Any) -> None:
    """Write the weights and the config of a network."""
    write_weights(writer, f"{name}/model.safetensors", state)
    writer.write(f"{name}/config.json", pretty_json(config.document()))


def write_weights(writer: Writer, file: str, state: dict[str, Tensor]) -> None:
    """Write tensors into a file of safetensors."""
    with writer.file(file) as temporary:
        save_file({key: value.contiguous() for key, value in state.items()}, temporary)


def round_weights(dtype: Precision, *networks: nn.Module) -> None:
    """Cast the weights of networks to a precision, in place; buffers stay as they are."""
    if dtype != "stored":
        for network in networks:
            for parameter in network.parameters():
                parameter.data = parameter.data.to(getattr(torch, dtype))


def load_vae(artifact: Artifact) -> TextVAE:
    """The Text VAE of a vae, latents or prior artifact, on the CPU, in its stored precision."""
    return load_network(artifact, VAE, TextVAE, vae_config(artifact))


def load_prior(artifact: Artifact) -> Prior:
    """The prior of a prior artifact, on the CPU, in its stored precision."""
    return load_network(artifact, PRIOR, Prior, prior_config(artifact))


def load_transformer(artifact: Artifact) -> Transformer:
    """The transformer of a baseline's artifact, on the CPU, in its stored precision."""
    return load_network(artifact, TRANSFORMER, Transformer, transformer_config(artifact))


def load_network(
    artifact: Artifact, name: str, make: Callable[[ConfigT], NetworkT], config: ConfigT
) -> NetworkT:
    """The network of this config that the artifact holds under this name.

    Rotary frequencies that follow from its config are not among the weights. Raises DamagedArtifact when they
    do not fit the network.
    """
    with torch.device("meta"):
        network: Any = make(config)
    try:
        network.load_state_dict(read_weights(artifact, name), assign=True)
    except RuntimeError as error:
        raise _damaged(artifact, name, error) from error
    if any(name == "frequencies" and buffer.is_meta for name, buffer in network.named_buffers()):
        own = network.config
        network.frequencies = rotary_frequencies(own.head_dim, own.rope_theta)
    return network


def read_weights(artifact: Artifact, name: str) -> dict[str, Tensor]:
    """The weights that the artifact holds under this name.

    Raises DamagedArtifact when they are not whole, or not finite numbers.
    """
    try:
        # Copies: matrix products on the mapped file's memory, otherwise aligned, can round differently.
        with utf8_name(_weights(artifact, name)) as place:
            state = {key: value.clone() for key, value in load_file(place).items()}
    except SafetensorError as error:
        raise _damaged(artifact, name, error) from error
    require_finite(state, _weights(artifact, name), RESTORE)
    return state


def _weights(artifact: Artifact, name: str) -> Path:
    return artifact.file(f"{name}/model.safetensors")


def _damaged(artifact: Artifact, name: str, error: Exception) -> DamagedArtifact:
    return DamagedArtifact(
        f"{_weights(artifact, name)} does not hold the weights that its config.json describes"
        f" ({' '.join(str(error).split())}).",
        RESTORE,
    )
