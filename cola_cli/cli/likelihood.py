"""cola likelihood: likelihoods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.console import print_json, table
from cola_cli.cli.options import Invocation, command
from cola_cli.errors import UsageError

DRAWS, STEPS = 1 << 16, 10_000  # at most


@command("device", "threads")
def likelihood(
    run: Invocation,
    model: Annotated[Path, typer.Argument(help="A prior artifact or a checkpoint folder.")],
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
        str,
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
    if divergence not in ("hutchinson", "exact"):
        raise UsageError(f"--divergence {divergence}: unknown.", "Use hutchinson or exact.")
    prepare_torch(run.threads)
    from cola_cli.stages.score import open_scorer, perplexities, read_texts, score_text

    opened = open_scorer(model, run.device)
    if text is not None:
        texts = [(text, "the text")]
    else:
        texts = list(read_texts(file, text_field))  # type: ignore[arg-type]
    report = run.reporter
    report.start("score", len(texts), "texts")
    found = []
    for one, place in texts:
        found.append(score_text(opened, one, draws, steps, divergence, seed, prefix, place))  # type: ignore[arg-type]
        report.advance(1)
    report.stop()
    tokens = sum(row["tokens"] for row in found)
    exact = divergence == "exact"
    bounds = {
        "elbo": sum(row["elbo"] for row in found),
        "iwae": sum(row["iwae"] for row in found) if exact else None,
    }
    if not exact:
        report.note("elbo is an estimate without bias; for iwae, a bound, give --divergence exact")
    summary = {"texts": len(found), "tokens": tokens, **bounds, **perplexities(bounds, tokens)}
    if run.json:
        print_json(summary | {"scores": found})
        return
    if len(found) == 1 and "latents" in found[0]:
        rows = [[repr(row["text"]), *list(row.values())[1:]] for row in found[0]["latents"]]
        table("terms", ["token", "posterior", "prior", "decoder", "perplexity"], rows)
    table(
        "likelihood",
        ["figure", "value"],
        [[name, value] for name, value in summary.items() if value is not None],
    )
