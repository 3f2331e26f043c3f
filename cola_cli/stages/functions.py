"""The stages as Python functions, with the settings, defaults and promises of the commands of their names.

Each reads artifacts, writes one at `output` and returns an Outcome; what is finished is left as it is, what
was interrupted goes on. `settings` are values by dotted name, over the preset: {"train.steps": 60}.
`reporter` receives progress; None is silent. All raise the errors of cola_cli.errors: UsageError for an
unknown setting, OutputConflict when `output` holds something else and `overwrite` is not set, InputError for
unusable inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cola_cli.families import PRIOR, TEXT_VAE, Family
from cola_cli.reporting import Reporter, Silent
from cola_cli.settings import TABLES, resolve
from cola_cli.settings.fields import Settings
from cola_cli.stages.run import Outcome, Run

Place = str | Path


def tokenize(
    corpus: Place | Sequence[Place],
    output: Place,
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    tokenizer: Place | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """Files, folders, patterns or URLs of text to a tokens artifact. tokenizer: a tokenizer.json to use."""
    from cola_cli.stages.tokenize import tokenize as stage

    names = [corpus] if isinstance(corpus, str | Path) else corpus
    chosen: Any = _resolved("tokenize", preset, settings)
    given = None if tokenizer is None else Path(tokenizer)
    run = _run("cpu", overwrite, reporter)
    return stage([str(name) for name in names], Path(output), chosen, given, run)


def train_vae(
    tokens: Place,
    output: Place,
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """A tokens artifact to a Text VAE (stage 1 of the paper)."""
    return _train(TEXT_VAE, tokens, output, preset, settings, _run(device, overwrite, reporter))


def encode(
    tokens: Place,
    vae: Place,
    output: Place,
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """The posterior of every sequence of a tokens artifact under a Text VAE, to a latents artifact."""
    from cola_cli.stages.encode import encode as stage

    chosen: Any = _resolved("encode", preset, settings)
    run = _run(device, overwrite, reporter)
    return stage(Path(tokens), Path(vae), Path(output), chosen, run)


def train_prior(
    latents: Place,
    output: Place,
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """A latents artifact to a prior by flow matching (stage 2 of the paper); `cola_cli.load` opens it."""
    return _train(PRIOR, latents, output, preset, settings, _run(device, overwrite, reporter))


def _train(
    family: Family,
    source: Place,
    output: Place,
    preset: str | None,
    settings: Mapping[str, Any] | None,
    run: Run,
) -> Outcome:
    from cola_cli.stages.train import train

    chosen = _resolved(family.table, preset, settings)
    return train(family, Path(source), Path(output), chosen, run)


def _resolved(table: str, preset: str | None, settings: Mapping[str, Any] | None) -> Settings:
    return resolve(TABLES[table], table, preset, flags=settings)


def _run(device: str, overwrite: bool, reporter: Reporter | None) -> Run:
    return Run(reporter=reporter or Silent(), device=device, overwrite=overwrite)
