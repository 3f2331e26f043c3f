"""What the scripts are started with."""

from __future__ import annotations

import sys
from pathlib import Path

from cola_cli.families import PRIOR, TEXT_VAE
from cola_cli.settings.encode import EncodeSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.train import train
from tests.conftest import CPU
from tests.stages.conftest import make_tokens, prior_settings, vae_settings


def cola_script(folder: Path) -> Path:
    """A program `cola` in `folder` that is the cola under test."""
    command = folder / "cola"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cola_cli "$@"\n')
    command.chmod(0o755)
    return command


def small_prior(folder: Path) -> Path:
    """A prior of two steps in `folder`, with what it was made from."""
    tokens, vae, latents, model = (folder / name for name in ("tokens", "vae", "latents", "model"))
    make_tokens(folder)
    train(TEXT_VAE, tokens, vae, vae_settings(steps=2), CPU)
    encode(tokens, vae, latents, EncodeSettings(), CPU)
    train(PRIOR, latents, model, prior_settings(steps=2), CPU)
    return model
