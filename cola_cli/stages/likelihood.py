"""`cola likelihood`: bounds on the likelihood of texts, and the terms behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cola_cli.api import Cola
from cola_cli.artifacts import Writer
from cola_cli.artifacts.files import sha256_text
from cola_cli.artifacts.kinds import LikelihoodsPart, LikelihoodsStatistics
from cola_cli.corpus.documents import read_documents
from cola_cli.corpus.files import find_files
from cola_cli.errors import InputError
from cola_cli.evaluation.likelihood import likelihood, require_bound, response_score
from cola_cli.flow.likelihood import Divergence
from cola_cli.machine import interruption
from cola_cli.machine.threads import describe_environment, prepare_torch
from cola_cli.reporting import Reporter, Silent
from cola_cli.settings.likelihood import LikelihoodSettings
from cola_cli.settings.sample import SampleSettings
from cola_cli.stages.answers import items_of_parts, open_model, write_rows_part
from cola_cli.stages.run import Outcome, Run, open_output, up_to_date
from cola_cli.stages.sample import model_fingerprint
from cola_cli.stages.shards import WHOLE, Shard, make_artifact


def read_texts(path: Path, text_field: str) -> Iterator[tuple[str, str]]:
    """The texts to score, records or whole text files, each with its place."""
    for file in find_files([str(path)]):
        for document in read_documents(file, text_field, "file"):
            yield document.text, f"{file}, {document.place},"


def open_scorer(path: Path, device: str) -> Cola:
    """The model whose likelihoods are wanted. Raises InputError for a baseline or one without tokenizer."""
    model = open_model(path, SampleSettings(), device)
    if not isinstance(model, Cola):
        raise InputError(
            f"{path} is a baseline, and has no posterior, prior and decoder to score with.",
            "Name a prior artifact or a checkpoint folder.",
        )
    require_bound(model)
    return model


def score(
    model: Cola,
    texts: str | Sequence[str],
    *,
    prefix: str | None = None,
    draws: int = 1,
    steps: int = 32,
    divergence: Divergence = "hutchinson",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Bounds on the log-likelihood of texts in nats, as `cola likelihood --json` prints those of one.

    Of each text `tokens`, `elbo`, `iwae` (None unless the divergence is exact), `perplexity_elbo`, and under
    `latents` the terms of every latent.

    prefix: score each text as what follows this. draws: of the posterior; steps: of the solver. Raises
    InputError for an empty text or one longer than the model's context, UsageError for an exact divergence of
    a model without a density.
    """
    given = [texts] if isinstance(texts, str) else texts
    placed = [(text, f"text {number}") for number, text in enumerate(given)]
    options = {"draws": draws, "steps": steps, "seed": seed}
    found: list[dict[str, Any]] = likelihoods(
        model, placed, Silent(), prefix, divergence, **options
    )["scores"]
    return found


def likelihoods(
    model: Cola,
    texts: Iterable[tuple[str, str]],
    reporter: Reporter,
    prefix: str | None = None,
    divergence: Divergence = "hutchinson",
    **options: Any,
) -> dict[str, Any]:
    """Bounds and perplexities of all texts, each given with its place, and under `scores` those of each.

    prefix: score each text as what follows this. options: draws, steps and seed of `likelihood`. Raises
    UsageError when an exact divergence is asked of a model without a density.
    """
    require_bound(model, divergence)
    texts = list(texts)
    found = []
    reporter.start("score", len(texts), "texts")
    for text, place in texts:
        found.append(_text_likelihood(model, text, place, prefix, divergence=divergence, **options))
        reporter.advance(1)
    reporter.stop()
    if divergence != "exact" and model.prior.config.has_density:
        reporter.note(
            "elbo is an estimate without bias; for iwae, a bound, give --divergence exact"
        )
    return _summary(len(found), sum(row["tokens"] for row in found), found) | {"scores": found}


def likelihoods_to_artifact(
    model_path: Path,
    file: Path,
    output_path: Path,
    settings: LikelihoodSettings,
    run: Run | None = None,
    shard: Shard = WHOLE,
) -> Outcome:
    """Score all texts of a corpus file into a likelihoods artifact, after the parts that are there.

    `shard` as in `make_artifact`: (i, n) makes the parts with index = i modulo n.
    """
    run = run or Run()
    texts = list(read_texts(file, settings.text_field))
    scored = sha256_text(json.dumps([text for text, _ in texts]))
    inputs = {"model": model_fingerprint(model_path), "texts": scored}
    reads = (model_path, file)
    output = open_output(output_path, "likelihoods", "likelihood", settings, inputs, run, reads)
    if output.up_to_date:
        return up_to_date(output)
    environment = describe_environment(prepare_torch(run.threads)) | {"device": run.device}
    options = settings.model_dump(include={"draws", "steps", "divergence", "seed"})

    def make(done: Collection[int], own: Shard) -> None:
        model = open_scorer(model_path, run.device)
        require_bound(model, settings.divergence)
        parts = items_of_parts(len(texts), settings.items_per_part, own)
        there = sum(len(items) for index, items in parts.items() if index in done)
        run.reporter.start("score", sum(map(len, parts.values())), "texts", done=there)
        for index in [index for index in parts if index not in done]:
            rows = []
            for item in parts[index]:
                text, place = texts[item]
                rows.append({"text": text} | _text_likelihood(model, text, place, None, **options))
                run.reporter.advance(1)
                interruption.check()
            write_rows_part(output, index, rows, _bounds(rows), own)
        run.reporter.stop()

    def finish(writer: Writer) -> dict[str, Any]:
        parts = writer.recorded()
        sums = [LikelihoodsPart.of(part.statistics, output.place).model_dump() for part in parts]
        tokens = sum(part.tokens for part in parts)
        return LikelihoodsStatistics(**_summary(len(texts), tokens, sums)).model_dump()

    return make_artifact(output, environment, run, shard, make, finish)


def _bounds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Sums of the bounds; an empty one is None where any row has none."""
    iwae = [row["iwae"] for row in rows]
    return {"elbo": sum(row["elbo"] for row in rows), "iwae": None if None in iwae else sum(iwae)}


def _summary(texts: int, tokens: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    bounds = _bounds(rows)
    return {"texts": texts, "tokens": tokens, **bounds, **_perplexities(bounds, tokens)}


def _text_likelihood(
    model: Cola, text: str, place: str, prefix: str | None, **options: Any
) -> dict[str, Any]:
    """ELBO, IWAE, perplexities and per-latent terms of a text; with `prefix`, of what follows it.

    IWAE is None unless the divergence is exact. Raises InputError, naming the text by its `place`, when it is
    longer than the model's context, or its likelihood is not a finite number.
    """
    tokenizer = model.require_tokenizer()
    ids = tokenizer.encode(text)
    before = tokenizer.encode(prefix) if prefix is not None else []
    if model.context is not None and len(before) + len(ids) > model.context:
        raise InputError(
            f"{place} has {len(before) + len(ids)} tokens, but the model was trained on sequences of"
            f" {model.context}.",
            "Cut it into shorter texts.",
        )
    if prefix is not None:
        found = response_score(model, before, ids, **options)
        _require_finite(found, place)
        return {"tokens": len(ids), **found, **_perplexities(found, len(ids))}
    terms = likelihood(model, ids, **options)
    bounds = {"elbo": terms.elbo, "iwae": terms.iwae}
    _require_finite(bounds, place)
    patch = model.vae.config.patch_size
    rows = [
        {"text": tokenizer.continuation(ids[: at * patch], ids[at * patch : (at + 1) * patch])}
        | row
        for at, row in enumerate(terms.table())
    ]
    return {
        "tokens": terms.tokens,
        **bounds,
        **_perplexities(bounds, terms.tokens),
        "latents": rows,
    }


def _require_finite(bounds: Mapping[str, float | None], place: str) -> None:
    for name, value in bounds.items():
        if value is not None and not math.isfinite(value):
            raise InputError(
                f"the {name} of {place} is not a finite number: those of the model overflow.",
                "Give it more --steps, or train it for longer.",
            )


def _perplexities(bounds: Mapping[str, float | None], tokens: int) -> dict[str, float | None]:
    """exp(-bound / tokens) of each bound, None where there is no bound. Raises InputError without tokens."""
    if not tokens:
        raise InputError("there is nothing to score.", "Give texts that are not empty.")
    return {
        f"perplexity_{name}": None if value is None else math.exp(min(700.0, -value / tokens))
        for name, value in bounds.items()
    }
