"""Weights that a training begins from: of an artifact, or of a checkpoint in the authors' layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.artifact import is_artifact
from cola_cli.errors import InputError
from cola_cli.families import Family
from cola_cli.settings import TABLES
from cola_cli.weights.configs import VAE, network_files, prior_config, vae_config
from cola_cli.weights.folder import ModelFolder, open_model_folder, require_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

BF16_ROUNDING = 2.0**-8  # of a weight, by storing it in half the bytes


class Start:
    """Where a model of a family begins. A Text VAE begins at any artifact that holds one.

    Raises InputError when there is no such model at `path`.
    """

    def __init__(self, path: Path, family: Family) -> None:
        self.path, self._family, self._name = path, family, family.network
        require_folder(path)
        self._source: Artifact | ModelFolder
        if is_artifact(path):
            self._source = artifact = Artifact.open(
                path, None if self._name == VAE else family.kind
            )
            self.fingerprint = artifact.manifest.fingerprint
            if not artifact.has(network_files(self._name)[0]):
                raise InputError(
                    f"{path} is a {artifact.manifest.kind} artifact, which holds no Text VAE.",
                    "Name a vae, latents or prior artifact.",
                )
        elif family.token_model is not None:
            raise InputError(f"{path} is not an artifact.", f"Name one of `cola {family.stage}`.")
        else:
            self._source = open_model_folder(path)
            self.fingerprint = self._source.fingerprint()

    def settings(self) -> dict[str, Any]:
        """The sizes of this network as settings of training, and how it is stored to be sampled."""
        defaults: Any = TABLES[self._family.table]()
        found = {"model": self._shape().model_dump()}
        if isinstance(self._source, Artifact) and hasattr(defaults, "sampling"):
            found["sampling"] = open_model_folder(self.path).sampling
        return {
            table: {
                n: v for n, v in values.items() if n in type(getattr(defaults, table)).model_fields
            }
            for table, values in found.items()
        }

    def load_into(self, network: nn.Module) -> None:
        """Give the network these weights, in its precision. Raises InputError naming what does not fit."""
        from cola_cli.weights.tensors import require_fit

        found = self._state(self._name)
        remedy = "Train a model of its sizes, or start from other weights."
        require_fit(found, network.state_dict(), self.path, remedy)
        network.load_state_dict(found)

    def require_latent_space(self, latents: Artifact) -> None:
        """See `require_latent_space`."""
        require_latent_space(self.path, self._source, latents)

    def _shape(self) -> Any:
        if isinstance(self._source, Artifact):
            if (model := self._family.token_model) is not None:
                return model.read_config(self._source)
            return (vae_config if self._name == VAE else prior_config)(self._source)
        vae, prior = self._source.configs()
        return vae if self._name == VAE else prior

    def _state(self, name: str) -> dict[str, Tensor]:
        return _state(self._source, name)


def require_latent_space(path: Path, source: Artifact | ModelFolder, latents: Artifact) -> None:
    """Raise InputError unless the Text VAE of the model at `path` made these latents, up to rounding."""
    if not isinstance(source, Artifact):
        shape = source.configs()[0]
    elif _digests(source) == _digests(latents):
        return  # without torch
    else:
        shape = vae_config(source)
    import torch

    from cola_cli.weights.artifact import read_weights

    own, other = _state(source, VAE), read_weights(latents, VAE)
    same = (shape, own.keys()) == (vae_config(latents), other.keys()) and all(
        own[name].shape == weights.shape
        and torch.allclose(own[name].float(), weights.float(), rtol=BF16_ROUNDING)
        for name, weights in other.items()
    )
    if not same:
        raise InputError(
            f"{path} uses another latent space than {latents.path}: their VAEs differ.",
            "Encode the tokens with its VAE, or name latents that it was trained on, its VAE frozen.",
        )


def _digests(artifact: Artifact) -> dict[str, str]:
    """Digests of the files of its Text VAE."""
    files = network_files(VAE)
    return {one.path: one.sha256 for one in artifact.manifest.files if one.path in files}


def _state(source: Artifact | ModelFolder, name: str) -> dict[str, Tensor]:
    from cola_cli.weights.artifact import read_weights

    if isinstance(source, Artifact):
        return read_weights(source, name)
    vae, prior = source.load()
    return (vae if name == VAE else prior).state_dict()
