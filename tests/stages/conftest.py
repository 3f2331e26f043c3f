"""A tokens, vae and latents artifact for the tests of training, made once a session."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS
from cola_cli.families import TEXT_VAE
from cola_cli.settings.distill import DistillSettings
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.settings.vae import VAESettings
from cola_cli.stages.encode import encode
from cola_cli.stages.tokenize import tokenize
from cola_cli.stages.train import train
from tests.conftest import CPU

SEQ_LEN = 32
VAE_MODEL = {
    "dim": 32,
    "ffn_dim": 64,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "latent_dim": 8,
}
PRIOR_MODEL = {"dim": 32, "heads": 2, "head_dim": 16, "rope_dim": 12, "layers": 2, "block_size": 8}
OPTIM = {"lr": 4e-3, "warmup_steps": 5}
TRAIN = {
    "steps": 24,
    "batch_size": 4,
    "log_every": 5,
    "validate_every": 8,
    "checkpoint_every": 5,
    "validation_sequences": 8,
}


def made_up_text(documents: int, seed: int = 0) -> str:
    """Short sentences in a few words."""
    source = random.Random(seed)
    names, verbs = ["Anna", "Tom", "the cat", "a bird"], ["sees", "likes", "finds", "calls"]
    things = ["the red ball", "a tall tree", "the old boat", "some warm bread"]
    sentences = [
        f"{source.choice(names)} {source.choice(verbs)} {source.choice(things)}"
        f" {source.randrange(10_000)}."
        for _ in range(documents)
    ]
    return "\n\n".join(sentences)


def make_tokens(folder: Path, documents: int = 600, **changes: object) -> Path:
    """A tokens artifact in `folder`."""
    (folder / "corpus.txt").write_text(made_up_text(documents))
    settings = TokenizeSettings(
        vocab_size=300,
        seq_len=SEQ_LEN,
        part_bytes=4000,
        workers=1,
        validation_fraction=0.2,
        **changes,
    )
    tokenize([str(folder / "corpus.txt")], folder / "tokens", settings)
    return folder / "tokens"


def files_beside_the_kept_state(model: Artifact) -> set[str]:
    """The files of a finished training but those of its last checkpoint, of which there is one."""
    names = {record.path for record in model.manifest.files}
    (step,) = {Path(name).parent for name in names if name.startswith(CHECKPOINTS)}
    return {name for name in names if Path(name).parent != step}


def vae_settings(**train: object) -> VAESettings:
    """A Text VAE of a few thousand weights, trained for a moment."""
    return VAESettings.model_validate(
        {
            "model": VAE_MODEL,
            "optim": OPTIM,
            "train": TRAIN | train,
            "mask": {"start": 6, "ramp": 6},
        }
    )


def prior_settings(mode: str = "frozen", **train: object) -> PriorSettings:
    """A prior of a few thousand weights, trained for a moment."""
    return PriorSettings.model_validate(
        {"mode": mode, "model": PRIOR_MODEL, "optim": OPTIM, "train": TRAIN | train}
    )


def distill_settings(
    passes: int = 2, teacher: dict[str, float] | None = None, **train: object
) -> DistillSettings:
    """A student of a teacher of 8 steps, trained for a moment."""
    return DistillSettings.model_validate(
        {
            "passes": passes,
            "teacher": teacher or {"steps": 8, "guidance": 2.0},
            "optim": OPTIM,
            "train": TRAIN | train,
        }
    )


def assignments(settings: VAESettings | PriorSettings | DistillSettings) -> list[str]:
    """The same as flags of the command line."""
    flags = []
    for section, values in settings.model_dump(exclude_unset=True).items():
        for name, value in values.items() if isinstance(values, dict) else ():
            flags += ["--set", f"{section}.{name}={value}"]
    return flags


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished tokens, vae and latents."""
    folder = tmp_path_factory.mktemp("made")
    tokens = make_tokens(folder)
    train(TEXT_VAE, tokens, folder / "vae", vae_settings(), CPU)
    encode(tokens, folder / "vae", folder / "latents", EncodeSettings(), CPU)
    return folder
