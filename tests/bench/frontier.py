"""Quality against speed: steps x guidance x solver of a prior, its students, and baselines, on one page.

    python tests/bench/frontier.py MODEL --tokens TOKENS [--beside STUDENT AR ...] [--stories]
        [--steps 1 2 4 8 16] [--guidance 1 2] [--solvers euler midpoint] [--settle 0 2] [--json] [-o RUN]

Everything continues the same openings of held-out sequences of TOKENS, priors from the same noise, baselines
greedily. `pairs` is the share of neighbouring words that are neighbours in the training text too, `repeated`
that of 4-grams of tokens seen earlier in their continuation, `grammar`, for a corpus of pipelines/stories.py
(--stories), that of whole new sentences that its grammar can write. Tokens are counted a second of the
processor on a CPU (take --threads 1), of the clock on a GPU. A student is sampled as it was made to be.
What was measured goes to a file in the folder RUN, which `cola report RUN` draws.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli.api import Cola, LanguageModel, load_any
from cola_cli.artifacts.kinds import Tokens
from cola_cli.corpus.sequences import Sequences
from cola_cli.evaluation.text_metrics import text_metrics
from cola_cli.evaluation.text_share import TrainingWords
from cola_cli.machine import threads
from cola_cli.studies.measurements import CURVES, Curves, Measurement
from pipelines.stories import grammar, sentences

Row = dict[str, Any]


def ways(model: LanguageModel, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Options of what is compared: all of them for a prior, a student's or a baseline's own otherwise."""
    if not isinstance(model, Cola) or model.prior.config.passes:
        return [{}]
    head = model.prior.config.prediction == "tokens"
    found = [
        {"steps": steps, "guidance": guidance, "solver": solver, "settle": settle}
        | ({} if solver == "euler" else {"eta": 0.0})
        for steps, guidance, solver, settle in itertools.product(
            asked.steps, asked.guidance, asked.solvers, asked.settle if head else [0]
        )
    ]
    return [options for options in found if options["settle"] < options["steps"]]


def measured(
    model: LanguageModel, prompts: list[list[int]], new: int, options: dict[str, Any],
    known: TrainingWords, stories: bool,
) -> Row:  # fmt: skip
    """Speed and quality of one way."""
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    model.generate_ids(prompts[:1], max_new_tokens=new, **options)  # warm
    started = clock()
    found = model.generate_ids(prompts, max_new_tokens=new, **options)
    seconds = clock() - started
    tokenizer = model.require_tokenizer()
    texts = [tokenizer.continuation(ids, one.ids) for ids, one in zip(prompts, found, strict=True)]
    row: Row = {
        "tokens_per_second": sum(len(one.ids) for one in found) / seconds,
        "pairs": known.share(texts).pairs,
        "repeated": text_metrics([one.ids for one in found])["repeated_4"],
    }
    if stories:
        # the first sentence goes on from the prompt, the last one is cut
        rule, whole = grammar(), [one for text in texts for one in sentences(text)[1:-1]]
        row["grammar"] = sum(bool(rule.fullmatch(one)) for one in whole) / max(1, len(whole))
    return row


def curves(rows: list[Row], quality: list[str]) -> Curves:
    """A line a model and metric, along tokens a second."""
    points = [
        Measurement(
            family=row["model"], flops=row["tokens_per_second"], metric=name, value=row[name]
        )
        for row in rows
        for name in quality
        if row[name] is not None
    ]
    return Curves(points=points, x="tokens a second", linear=quality)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="students, baselines")
    parser.add_argument("--stories", action="store_true")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--solvers", nargs="+", default=["euler"])
    parser.add_argument("--settle", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", "-o", type=Path, help="a folder for `cola report`")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    print(threads.prepare_torch(asked.threads))
    tokens = Tokens.open(asked.tokens)
    known = TrainingWords(tokens)
    held_out = Sequences(tokens, "validation").read(0, asked.prompts)
    prompts = [row[: asked.prompt].tolist() for row in held_out.tokens]
    quality = ["grammar"] * asked.stories + ["pairs", "repeated"]
    print(
        f"| model | way | tokens/s | {' | '.join(quality)} |\n|---|---|---|{'---|' * len(quality)}"
    )
    rows: list[Row] = []
    for path in [asked.model, *asked.beside]:
        model = load_any(path, asked.device)
        for options in ways(model, asked):
            row = measured(model, prompts, asked.new, options, known, asked.stories)
            rows.append({"model": path.name} | options | row)
            way = ", ".join(f"{name} {value}" for name, value in options.items()) or "its own"
            cells = [f"{100 * (row[name] or 0):.1f}" for name in quality]
            speed = f"{row['tokens_per_second']:.0f}"
            print(f"| {path.name} | {way} | {speed} | {' | '.join(cells)} |", flush=True)
    if asked.output:
        asked.output.mkdir(parents=True, exist_ok=True)
        text = curves(rows, quality).model_dump_json(indent=2)
        (asked.output / CURVES).write_text(text, encoding="utf-8")
    if asked.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
