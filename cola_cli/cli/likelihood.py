"""cola likelihood: bounds on the likelihood of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cola_cli.cli.options import Invocation, Model, command
from cola_cli.errors import UsageError

DRAWS, STEPS = 1 << 16, 10_000  # at most


@command("device", "threads")
def likelihood(
    run: Invocation,
    model: Model,
    text: Annotated[str | None, typer.Option("--text", help="A text to score.")] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="Score --text as what follows this.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A corpus file of texts.")] = None,
    text_field: Annotated[str, typer.Option("--text-field", help="Field of records.")] = "text",
    draws: Annotated[
        int, typer.Option("--draws", min=1, max=DRAWS, help="K, posterior draws a text.")
    ] = 1,
    steps: Annotated[
        int, typer.Option("--steps", min=1, max=STEPS, help="Of the ODE solver.")
    ] = 32,
    divergence: Annotated[
        Literal["hutchinson", "exact"],
        typer.Option(
            "--divergence",
            help="hutchinson (one probe a solve: an estimate, no IWAE) or exact (bounds).",
        ),
    ] = "hutchinson",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
) -> None:
    """ELBO and IWAE perplexity of texts, with posterior, prior and decoder terms of every token.

    Example: cola likelihood runs/demo/prior --text "We the people" --draws 4
    """
    from cola_cli.machine.threads import prepare_torch

    if (text is None) == (file is None) or (prefix is not None and text is None):
        raise UsageError("give either --text (and --prefix) or --file.", 'Such as --text "...".')
    for name, given in {"--text": text, "--prefix": prefix}.items():
        if given == "":
            raise UsageError(f"{name} is empty.", "Give it some text.")
    prepare_torch(run.threads)
    from cola_cli.stages.likelihood import likelihoods, open_scorer, read_texts

    opened = open_scorer(model, run.device)
    texts = [(text, "the text")] if text is not None else read_texts(file or Path(), text_field)
    options = {"draws": draws, "steps": steps, "seed": seed}
    summary = likelihoods(opened, texts, run.reporter, prefix, divergence, **options)
    scores = summary["scores"]
    terms = []
    if len(scores) == 1 and "latents" in scores[0]:
        terms = [[repr(row["text"]), *list(row.values())[1:]] for row in scores[0]["latents"]]
    values = [[k, v] for k, v in summary.items() if k != "scores" and v is not None]
    run.show(
        summary,
        ("terms", ["token", "posterior", "prior", "decoder", "perplexity"], terms),
        ("likelihood", ["metric", "value"], values),
    )
