"""A model on disk that can continue text: an artifact of ours, or a checkpoint in the authors' layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cola_cli.artifacts.artifact import is_artifact
from cola_cli.artifacts.files import sha256_file, sha256_text
from cola_cli.artifacts.kinds import TOKENIZER, TrainedModel
from cola_cli.corpus.tokenizer import TextTokenizer, load_tokenizer, tokenizer_of
from cola_cli.errors import InputError
from cola_cli.weights.configs import prior_config, vae_config

if TYPE_CHECKING:
    from cola_cli.models.config import PriorConfig, TextVAEConfig
    from cola_cli.models.prior import Prior
    from cola_cli.models.text_vae import TextVAE


class ModelFolder(Protocol):
    """A model on disk; `configs` and `load` are for a Text VAE with a prior.

    artifact: None for a checkpoint in the authors' layout; that of a model over tokens is read by its family.
    context: tokens of a training sequence, None if unknown. sampling: settings stored with the model.
    chat_template: of the conversations that it was trained on, if it was.
    """

    artifact: TrainedModel | None = None
    context: int | None = None
    sampling: dict[str, Any]
    chat_template: str | None = None

    def tokenizer_file(self) -> Path | None:
        """The file of the tokenizer, if there is one."""

    def tokenizer(self) -> TextTokenizer | None:
        """The tokenizer, if there is one."""

    def fingerprint(self) -> str:
        """The digest by which the model enters an identity."""

    def configs(self) -> tuple[TextVAEConfig, PriorConfig]:
        """The shapes of the Text VAE and the prior, without their weights."""

    def load(self) -> tuple[TextVAE, Prior]:
        """The Text VAE and the prior, on the CPU, in their stored precision."""


def open_model_folder(path: Path) -> ModelFolder:
    """The model at `path`: an artifact, the folder that holds `cola_dlm`, or that folder itself.

    Raises InputError when it is neither.
    """
    require_folder(path)
    return _OurFolder(path) if is_artifact(path) else _ReleasedFolder(path)


def require_folder(path: Path) -> None:
    """Raise InputError unless `path` is a directory."""
    if not path.is_dir():
        wrong = "is not a directory" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {wrong}.",
            "Name a prior artifact, a checkpoint folder, or hf:org/name for a model on the hub.",
        )


class _OurFolder(ModelFolder):
    def __init__(self, path: Path) -> None:
        artifact = TrainedModel.open(path)
        self.artifact: TrainedModel | None = artifact
        self._artifact = artifact
        self.context = artifact.statistics.seq_len
        self.sampling = artifact.sampling
        self.chat_template = artifact.statistics.chat_template

    def tokenizer_file(self) -> Path | None:
        return self._artifact.file(TOKENIZER) if self._artifact.has(TOKENIZER) else None

    def tokenizer(self) -> TextTokenizer | None:
        return tokenizer_of(self._artifact) if self._artifact.has(TOKENIZER) else None

    def fingerprint(self) -> str:
        return self._artifact.manifest.fingerprint

    def configs(self) -> tuple[TextVAEConfig, PriorConfig]:
        prior = TrainedModel.open(self._artifact.path, "prior")
        return vae_config(prior), prior_config(prior)

    def load(self) -> tuple[TextVAE, Prior]:
        from cola_cli.weights.artifact import load_prior, load_vae

        prior = TrainedModel.open(self._artifact.path, "prior")
        return load_vae(prior), load_prior(prior)


class _ReleasedFolder(ModelFolder):
    def __init__(self, path: Path) -> None:
        from cola_cli.weights.released import find_root

        self.sampling = {}
        self._path, self._root = path, find_root(path)

    def tokenizer_file(self) -> Path | None:
        from cola_cli.weights.released import tokenizer_file

        return tokenizer_file(self._root)

    def tokenizer(self) -> TextTokenizer | None:
        found = self.tokenizer_file()
        return load_tokenizer(found) if found else None

    def fingerprint(self) -> str:
        names = sorted(p for p in self._path.rglob("*") if p.suffix in (".json", ".safetensors"))
        return sha256_text("".join(sha256_file(name) for name in names))

    def configs(self) -> tuple[TextVAEConfig, PriorConfig]:
        from cola_cli.weights.released import read_configs

        return read_configs(self._root)

    def load(self) -> tuple[TextVAE, Prior]:
        from cola_cli.weights.released import read_checkpoint

        return read_checkpoint(self._root)
