"""The presets resolve, and have the sizes they promise."""

from __future__ import annotations

import tomllib

import pytest

from cola_cli.models.config import PriorConfig, TextVAEConfig, matched_sizes
from cola_cli.settings import resolve
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.distill import DistillSettings
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.resolve import PRESETS
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.settings.vae import VAESettings

NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))
STAGES = {
    "tokenize": TokenizeSettings,
    "vae": VAESettings,
    "encode": EncodeSettings,
    "prior": PriorSettings,
    "distill": DistillSettings,
    "baseline": BaselineSettings,
}


def sizes(name: str) -> tuple[int, int]:
    """Parameters of the VAE and of the prior."""
    vocabulary = resolve(TokenizeSettings, "tokenize", name).vocab_size
    vae = resolve(VAESettings, "vae", name).model.model_dump()
    return (
        TextVAEConfig(vocab_size=vocabulary, **vae).parameter_count(),
        prior_config(name).parameter_count(),
    )


def prior_config(name: str) -> PriorConfig:
    """The prior of a preset, on latents of its own VAE."""
    model = resolve(PriorSettings, "prior", name).model
    vocabulary = resolve(TokenizeSettings, "tokenize", name).vocab_size
    head = vocabulary if model.prediction == "tokens" else 0
    channels = resolve(VAESettings, "vae", name).model.latent_dim
    return PriorConfig(latent_dim=channels, vocab_size=head, **model.model_dump())


@pytest.mark.parametrize("name", NAMES)
def test_every_table_of_a_preset_is_understood(name: str) -> None:
    tables = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    assert tables.keys() <= STAGES.keys() | {"sample"}
    for table, model in STAGES.items():
        resolve(model, table, name)


def test_the_presets_have_their_sizes() -> None:
    assert sizes("paper-2b") == (501_871_574, 1_829_875_728)
    assert sum(sizes("small")) == pytest.approx(40e6, rel=0.02)
    assert sum(sizes("base")) == pytest.approx(150e6, rel=0.02)
    assert sum(sizes("tiny")) < 12e6


def test_paper_2b_trains_by_the_papers_recipe() -> None:
    prior = resolve(PriorSettings, "prior", "paper-2b")
    assert (prior.optim.lr, prior.optim.lr_start, prior.optim.lr_end) == (1.5e-4, 1e-6, 1e-5)
    assert (prior.optim.beta1, prior.optim.beta2, prior.optim.weight_decay) == (0.9, 0.95, 0.01)
    assert (prior.optim.clip, prior.optim.warmup_steps) == (1.0, 5000)
    assert (prior.optim.decay_until, prior.train.batch_size) == (1_000_000, 1408)
    assert (prior.train.seed, prior.train.data_seed, prior.train.ema_decay) == (66, 6198, 0.0)
    assert (prior.mode, prior.joint.vae_lr_ratio, prior.model.block_size) == ("joint", 1.0, 16)


@pytest.mark.parametrize("name", NAMES)
def test_the_baselines_of_a_preset_are_matched_to_its_prior(name: str) -> None:
    prior = resolve(PriorSettings, "prior", name)
    baseline = resolve(BaselineSettings, "baseline", name)
    sizes = matched_sizes(prior_config(name))
    assert {key: getattr(baseline.model, key) for key in sizes} == sizes
    assert (baseline.optim, baseline.train) == (prior.optim, prior.train)
