"""Stage `score`: likelihoods of texts, printed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_cli.corpus.documents import Document, read_documents
from cola_cli.corpus.files import find_files
from cola_cli.errors import InputError
from cola_cli.flow.likelihood import Divergence
from cola_cli.model import Cola


def read_texts(path: Path, text_field: str) -> Iterator[Document]:
    """The texts to score: records, or whole text files."""
    for file in find_files([str(path)]):
        yield from read_documents(file, text_field, "file")


def score_text(
    model: Cola,
    text: str,
    draws: int,
    steps: int,
    divergence: Divergence,
    seed: int,
    prefix: str | None = None,
) -> dict[str, Any]:
    """ELBO, IWAE, perplexities and per-latent terms of a text; with `prefix`, of what follows it."""
    from cola_cli.evaluation.likelihood import likelihood, response_score

    tokenizer = model.require_tokenizer()
    options: dict[str, Any] = {
        "draws": draws,
        "steps": steps,
        "divergence": divergence,
        "seed": seed,
    }
    ids = tokenizer.encode(text)
    if prefix is not None:
        before = tokenizer.encode(prefix)
        found = response_score(model, before, ids, **options)
        return {"tokens": len(ids), **found, **perplexities(found, len(ids))}
    terms = likelihood(model, ids, **options)
    bounds = {"elbo": terms.elbo, "iwae": terms.iwae}
    patch = model.vae.config.patch_size
    rows = [
        {"text": tokenizer.decode(ids[at * patch : (at + 1) * patch])} | row
        for at, row in enumerate(terms.table())
    ]
    return {"tokens": terms.tokens, **bounds, **perplexities(bounds, terms.tokens), "latents": rows}


def perplexities(bounds: dict[str, float], tokens: int) -> dict[str, float]:
    """exp(-bound / tokens) of each bound. Raises InputError without tokens."""
    if not tokens:
        raise InputError("there is nothing to score.", "Give texts that are not empty.")
    return {
        f"perplexity_{name}": math.exp(min(700.0, -value / tokens))
        for name, value in bounds.items()
    }
