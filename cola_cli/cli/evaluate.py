"""cola eval: the eight generative benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli import options
from cola_cli.cli.console import print_json, table


def score(
    task: Annotated[
        str, typer.Argument(help="lambada, mmlu, obqa, hellaswag, race, siqa, squad ...")
    ],
    file: Annotated[Path, typer.Argument(help="Generated answers, .jsonl or .jsonl.zst.")],
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Score generated answers by the released scorer's rules, with the honest figures beside it.

    Example: cola eval score mmlu answers.jsonl.zst --json
    """
    from cola_cli.errors import UsageError
    from cola_cli.evaluation.figures import figures
    from cola_cli.evaluation.outputs import read_items
    from cola_cli.evaluation.scoring import SCORERS
    from cola_cli.evaluation.scoring import score as judge
    from cola_cli.settings import nearest

    if task not in SCORERS:
        raise UsageError(f"there is no task {task!r}.", nearest(task, SCORERS))
    items = read_items(file)
    found = figures(items, [judge(task, item) for item in items]).as_dict()
    if json:
        print_json({"task": task, "file": str(file)} | found)
    else:
        shown = [[name, "-" if value is None else value] for name, value in found.items()]
        table(task, ["figure", "value"], shown)


def words(
    samples: Annotated[Path, typer.Argument(help="A samples artifact, of `cola sample -o`.")],
    tokens: Annotated[Path, typer.Option("--tokens", help="The tokens the model was trained on.")],
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Share of generated words and word pairs that the training text has, beside validation text's.

    Example: cola eval words runs/demo/samples --tokens runs/demo/tokens
    """
    from dataclasses import asdict

    from cola_cli.artifacts import Artifact
    from cola_cli.evaluation.text_share import TrainingWords, split_texts
    from cola_cli.stages.sample import read_samples

    source = Artifact.open(tokens, "tokens")
    known = TrainingWords(source)
    found = {
        "samples": asdict(known.share(row["text"] for row in read_samples(samples))),
        "validation": asdict(known.share(split_texts(source, "validation"))),
    }
    if json:
        print_json(found)
    else:
        rows = [[name, f["words"], f["pairs"], f["count"]] for name, f in found.items()]
        table("found in the training text", ["text", "words", "word pairs", "words seen"], rows)
