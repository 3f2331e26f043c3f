"""Training and sampling agree: a model that has memorised some sequences writes them out to the token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cola_cli
from cola_cli.artifacts.kinds import Tokens
from cola_cli.corpus.sequences import Sequences
from cola_cli.families import PRIOR, TEXT_VAE
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.settings.vae import VAESettings
from cola_cli.stages.encode import encode
from cola_cli.stages.tokenize import tokenize
from cola_cli.stages.train import train
from tests.conftest import CPU
from tests.stages.conftest import VAE_MODEL, made_up_text

PROMPT = 8  # tokens
TRAIN = {"log_every": 100, "validate_every": 1000, "checkpoint_every": 1000}


@pytest.fixture(scope="module")
def memorable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of a few sentences, a VAE that reconstructs them, and their latents."""
    folder = tmp_path_factory.mktemp("memorable")
    (folder / "corpus.txt").write_text(made_up_text(8, seed=3))
    settings = TokenizeSettings(
        vocab_size=280, seq_len=32, validation_fraction=0.2, seed=1, workers=1
    )
    tokenize([str(folder / "corpus.txt")], folder / "tokens", settings)
    vae = VAESettings.model_validate(
        {
            "model": VAE_MODEL | {"dim": 64, "ffn_dim": 128},
            "loss": {"posterior": "fixed", "log_snr": 4.0},
            "mask": {"weight": 0},
            "optim": {"lr": 5e-3, "warmup_steps": 10},
            "train": TRAIN | {"steps": 300, "batch_size": 4},
        }
    )
    train(TEXT_VAE, folder / "tokens", folder / "vae", vae, CPU)
    tokens, made = folder / "tokens", folder / "vae"
    encode(tokens, made, folder / "latents", EncodeSettings(), CPU)
    return folder


PRIORS: dict[str, dict[str, Any]] = {
    "velocity": {},
    "velocity, staggered": {"stagger": 2.0},
    "latent": {"prediction": "latent"},
    "tokens": {"prediction": "tokens"},
    "tokens, staggered": {"prediction": "tokens", "stagger": 2.0},
    "tokens, causal history": {"prediction": "tokens", "causal_history": True},
    "tokens, residual": {"prediction": "tokens", "residual": True},
    "tokens, evidence": {"prediction": "tokens", "evidence": True, "causal_history": True},
    "tokens, evidence, staggered": {
        "prediction": "tokens",
        "evidence": True,
        "causal_history": True,
        "stagger": 2.0,
    },
    "tokens, self-conditioned": {"prediction": "tokens", "self_conditioning": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["joint", *PRIORS])
def test_a_memorised_continuation_comes_back_exactly(memorable: Path, mode: str) -> None:
    settings = PriorSettings.model_validate(
        {
            "mode": "joint" if mode == "joint" else "frozen",
            "model": {
                "dim": 96,
                "heads": 3,
                "head_dim": 32,
                "rope_dim": 24,
                "layers": 2,
                "block_size": 8,
            }
            | PRIORS.get(mode, {}),
            "mask": {"weight": 0},
            "optim": {"lr": 3e-3, "warmup_steps": 20},
            "train": TRAIN | {"steps": 700, "batch_size": 8},
        }
    )
    train(PRIOR, memorable / "latents", memorable / f"prior {mode}", settings, CPU)
    model = cola_cli.load(memorable / f"prior {mode}")
    rows = Sequences(Tokens.open(memorable / "tokens"), "train").read(0, 2)
    assert rows.lengths.tolist() == [32, 32]
    prompts = [row[:PROMPT].tolist() for row in rows.tokens]
    written = model.generate_ids(prompts, max_new_tokens=32 - PROMPT, guidance=1.0, stop_ids=())
    assert [item.ids for item in written] == [row[PROMPT:].tolist() for row in rows.tokens]
