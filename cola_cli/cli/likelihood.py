"""cola likelihood: bounds on the likelihood of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli.options import (
    MACHINE,
    SHARDED,
    Invocation,
    Model,
    command,
    output_option,
    setting_flags,
)
from cola_cli.errors import UsageError


@command(*MACHINE, *SHARDED, table="likelihood")
@setting_flags("text_field", "draws", "steps", "divergence", "seed")
def likelihood(
    run: Invocation,
    model: Model,
    text: Annotated[str | None, typer.Option("--text", help="A text to score.")] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="Score --text as what follows this.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A corpus file of texts.")] = None,
    output: Annotated[
        Path | None,
        output_option("Write an artifact of those of --file, which resumes.", artifact=True),
    ] = None,
) -> None:
    """ELBO and IWAE perplexity of texts, with posterior, prior and decoder terms of every token.

    Example: cola likelihood runs/demo/prior --text "We the people" --draws 4
    """
    from cola_cli.machine.threads import prepare_torch
    from cola_cli.stages.shards import WHOLE

    if (text is None) == (file is None) or (prefix is not None and text is None):
        raise UsageError("give either --text (and --prefix) or --file.", 'Such as --text "...".')
    for name, given in {"--text": text, "--prefix": prefix}.items():
        if given == "":
            raise UsageError(f"{name} is empty.", "Give it some text.")
    shared = run.shard != WHOLE or run.given["on"] is not None
    if (output is not None and file is None) or (shared and output is None):
        raise UsageError("an artifact and its shards need --file and -o.", "Give both, or neither.")
    settings = run.settings()
    if output is not None and file is not None:
        _to_artifact(model, file, output, settings, run)
        return
    prepare_torch(run.threads)
    from cola_cli.stages.likelihood import likelihoods, open_scorer, read_texts

    opened = open_scorer(model, run.device)
    field = settings.text_field
    texts = [(text, "the text")] if text is not None else read_texts(file or Path(), field)
    options = settings.model_dump(include={"draws", "steps", "seed"})
    summary = likelihoods(opened, texts, run.reporter, prefix, settings.divergence, **options)
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


def _to_artifact(model: Path, file: Path, output: Path, settings: Any, run: Invocation) -> None:
    from cola_cli.stages.likelihood import likelihoods_to_artifact

    run.make_shards()
    outcome = likelihoods_to_artifact(model, file, output, settings, run, run.shard)

    def describe(made: dict[str, Any]) -> list[str]:
        perplexity = f"perplexity {made['perplexity_elbo']:.4g} by the ELBO"
        return [f"{output}: {made['texts']:,} texts, {made['tokens']:,} tokens, {perplexity}"]

    run.show_outcome(outcome, describe)
