"""cola eval text: metrics of generated text beside those of real text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.console import print_json, table
from cola_cli.cli.options import Invocation, command

ORDER = (
    "perplexity",
    "judged_tokens",
    "entropy",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "distinct_4",
    "repeated_2",
    "repeated_3",
    "repeated_4",
    "memorised",
    "mauve",
    "texts",
    "empty",
    "tokens",
    "mean_length",
)


@command("device", "threads")
def text(
    run: Invocation,
    samples: Annotated[
        Path, typer.Argument(help="A samples artifact, or .jsonl(.zst) with text and prompt.")
    ],
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="The tokens the model was trained on.")
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option("--judge", help="Model of `cola train ar`, or a transformers model's folder."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", help="Held-out text or tokens; default: validation of --tokens."
        ),
    ] = None,
    ngram: Annotated[
        int,
        typer.Option("--ngram", min=1, max=64, help="n of the n-grams sought in training text."),
    ] = 8,
) -> None:
    """Perplexity under a judge, entropy, variety, repetition and memorisation; real text's beside them.

    Example: cola eval text runs/demo/samples --tokens runs/demo/tokens --judge runs/demo/ar
    """
    from cola_cli.stages.eval_text import evaluate_text

    found = evaluate_text(samples, tokens, judge, reference, ngram, run)
    if run.json:
        print_json(found)
        return
    for note in found["notes"]:
        run.reporter.note(note)
    columns = [found["samples"], found["held_out"] or {}]
    shown = [[name, *(_shown(column.get(name)) for column in columns)] for name in ORDER]
    table("generated text", ["metric", "samples", "held-out"], shown)


def _shown(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
