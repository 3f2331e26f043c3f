"""The stages as Python functions, with the settings, defaults and promises of the commands of their names.

Each reads artifacts, writes one at `output` and returns an Outcome; what is finished is left as it is, what
was interrupted goes on. All raise the errors of cola_cli.errors: UsageError for an unknown setting,
OutputConflict when `output` holds something else and `overwrite` is not set, InputError for unusable inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from cola_cli.artifacts.places import read_place, written_place
from cola_cli.families import PRIOR, TEXT_VAE, Family
from cola_cli.reporting import Reporter, Silent
from cola_cli.settings import TABLES, resolve
from cola_cli.stages.run import Outcome, Run

Place = str | Path


class Given(TypedDict, total=False):
    """What every stage can be told.

    settings: values by dotted name, over the preset: {"train.steps": 60}. reporter: receives progress; None
    is silent.
    """

    preset: str | None
    settings: Mapping[str, Any] | None
    overwrite: bool
    reporter: Reporter | None


class GivenDevice(Given, total=False):
    """What a stage that computes can be told; device: cpu, cuda, cuda:1 ... or auto."""

    device: str


def tokenize(
    corpus: Place | Sequence[Place],
    output: Place,
    *,
    tokenizer: Place | None = None,
    **given: Unpack[Given],
) -> Outcome:
    """Files, folders, patterns or URLs of text to a tokens artifact. tokenizer: a tokenizer.json to use."""
    from cola_cli.stages.tokenize import tokenize as stage

    names = [corpus] if isinstance(corpus, str | Path) else corpus
    settings, run = _prepared("tokenize", device="cpu", **given)
    own = None if tokenizer is None else read_place(tokenizer)
    return stage([str(name) for name in names], written_place(str(output)), settings, own, run)


def train_vae(tokens: Place, output: Place, **given: Unpack[GivenDevice]) -> Outcome:
    """A tokens artifact to a Text VAE (stage 1 of the paper)."""
    return _train(TEXT_VAE, tokens, output, given)


def encode(tokens: Place, vae: Place, output: Place, **given: Unpack[GivenDevice]) -> Outcome:
    """The posterior of every sequence of a tokens artifact under a Text VAE, to a latents artifact."""
    from cola_cli.stages.encode import encode as stage

    return stage(
        read_place(tokens),
        read_place(vae),
        written_place(str(output)),
        *_prepared("encode", **given),
    )


def train_prior(latents: Place, output: Place, **given: Unpack[GivenDevice]) -> Outcome:
    """A latents artifact to a prior by flow matching (stage 2 of the paper); `cola_cli.load` opens it."""
    return _train(PRIOR, latents, output, given)


def _train(family: Family, source: Place, output: Place, given: GivenDevice) -> Outcome:
    from cola_cli.stages.train import train

    return train(
        family, read_place(source), written_place(str(output)), *_prepared(family.table, **given)
    )


def _prepared(
    table: str,
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Any, Run]:
    """The settings of a stage, and how it runs."""
    run = Run(reporter=reporter or Silent(), device=device, overwrite=overwrite)
    return resolve(TABLES[table], table, preset, flags=settings), run
