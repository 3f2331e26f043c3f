"""The tables of settings, one a stage: `[vae]` in a file, `COLA_VAE__...` in the environment."""

from __future__ import annotations

from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.distill import DistillSettings
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.evaluate import EvaluateSettings
from cola_cli.settings.fields import Settings
from cola_cli.settings.likelihood import LikelihoodSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.sample import SampleSettings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.settings.vae import VAESettings

# A settings file or the environment may speak to several stages at once.
TABLES: dict[str, type[Settings]] = {
    "tokenize": TokenizeSettings,
    "vae": VAESettings,
    "encode": EncodeSettings,
    "prior": PriorSettings,
    "distill": DistillSettings,
    "baseline": BaselineSettings,
    "sample": SampleSettings,
    "eval": EvaluateSettings,
    "likelihood": LikelihoodSettings,
}
