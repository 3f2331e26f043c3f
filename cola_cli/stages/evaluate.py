"""Stage `eval`: answer the items of a benchmark into an artifact that resumes, scored item by item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.artifacts import PartRecord
from cola_cli.artifacts.files import sha256_file, sha256_text
from cola_cli.artifacts.kinds import Evaluation
from cola_cli.artifacts.rows import artifact_rows, read_rows
from cola_cli.errors import InputError
from cola_cli.evaluation.metrics import paired_difference, task_metrics
from cola_cli.evaluation.scoring import Item, Verdict, require_task, score
from cola_cli.evaluation.tasks import Question
from cola_cli.sampling.prompts import Prompt
from cola_cli.settings import result_settings
from cola_cli.settings.evaluate import EvaluateSettings
from cola_cli.stages.answers import MakeRow, Sample, encoded_prompt, make_answers
from cola_cli.stages.run import Outcome, Run, open_output
from cola_cli.stages.sample import model_fingerprint as fingerprint_of
from cola_cli.stages.shards import WHOLE, Shard

if TYPE_CHECKING:
    from cola_cli.api import LanguageModel

STAGE = "eval"


def run_evaluation(
    model_path: Path,
    task: str,
    questions: Sequence[Question],
    data: Path,
    output_path: Path,
    settings: EvaluateSettings,
    run: Run | None = None,
    shard: Shard = WHOLE,
) -> Outcome:
    """Answer all questions into an evaluation artifact, going on after what an earlier run finished.

    `shard` as in `sample_to_artifact`. `data` is the file that the questions were made from. Raises
    UsageError for an unknown task, InputError naming the prompt that does not fit into the model.
    """
    run = run or Run()
    require_task(task)
    asked = [[q.id, q.prompt, q.ground_truth, list(q.choices)] for q in questions]
    inputs = {
        "model": fingerprint_of(model_path),
        "data": sha256_file(data),
        "prompts": sha256_text(json.dumps(asked)),
    }
    decisive = {"task": task} | result_settings(settings)
    reads = (model_path, data)
    output = open_output(output_path, "evaluation", STAGE, settings, inputs, run, reads, decisive)

    def prepare(model: LanguageModel) -> tuple[list[Prompt], MakeRow]:
        common = {
            "task": task,
            **_passes(model, settings),
            "temperature": settings.temperature,
            "seed": settings.seed,
            "dtype": str(model.dtype).removeprefix("torch."),
            "model": inputs["model"],
            "data_sha256": inputs["data"],
        }
        prompts = [_fitted(model, question, settings) for question in questions]
        return prompts, lambda sample: _row(questions[sample.item], sample, common)

    def statistics(parts: list[PartRecord]) -> dict[str, Any]:
        rows = [row for part in parts for _, row in read_rows(output.place / part.file)]
        items = [Item(r["generate"], r["ground_truth"], tuple(r["choices"])) for r in rows]
        verdicts = [Verdict(row["correct"], row["option"]) for row in rows]
        return task_metrics(task, items, verdicts, sum(row["cut"] for row in rows)).model_dump()

    progress = "answer", "items"
    return make_answers(output, model_path, settings, run, shard, progress, prepare, statistics)


def comparison(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """A row of metrics for every artifact, with its paired difference from the first of the same task.

    `difference` is this accuracy less that one, over the same prompts, with its 95 % interval; None for the
    first. Raises InputError when two of a task did not answer the same prompts.
    """
    first: dict[str, tuple[Path, list[dict[str, Any]]]] = {}
    found = []
    for path in paths:
        artifact = Evaluation.open(path)
        rows, task = list(artifact_rows(artifact)), artifact.statistics.task
        before_path, before = first.setdefault(task, (path, rows))
        compared: tuple[float | None, ...] = (None, None, None)
        if before_path != path:
            if _asked(before) != _asked(rows):
                raise InputError(
                    f"{before_path} and {path} did not answer the same prompts, so they cannot be"
                    " compared item by item.",
                    "Run both with the same task, data, template and limit.",
                )
            compared = paired_difference(
                [row["correct"] for row in before], [row["correct"] for row in rows]
            )
        names = ("difference", "difference_low", "difference_high")
        metrics = artifact.statistics.model_dump(exclude={"task", "cut_prompts"})
        found.append(
            {"artifact": str(path), "task": task, **metrics}
            | dict(zip(names, compared, strict=True))
        )
    return found


def _asked(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["id"], row["prompt_sha256"]) for row in rows]


def _passes(model: LanguageModel, settings: EvaluateSettings) -> dict[str, Any]:
    """Steps and guidance where they have a meaning: a baseline has no guidance, and its steps are passes."""
    from cola_cli.api import Baseline

    if not isinstance(model, Baseline):
        return {"steps": settings.steps, "guidance": settings.guidance}
    return {"steps": model.token_model.passes(settings), "guidance": None}


def _fitted(model: LanguageModel, question: Question, settings: EvaluateSettings) -> Prompt:
    prompt = Prompt(question.id, question.prompt, question.place)
    room = None if model.context is None else model.context - settings.max_new_tokens
    tokenizer = model.require_tokenizer()
    ids = tokenizer.encode(prompt.text) if settings.cut_prompts and room is not None else []
    if room is None or len(ids) <= room:
        encoded_prompt(model, prompt)
        return prompt
    if room < 1:
        raise InputError(
            f"the model's context of {model.context} tokens has no room for a prompt beside"
            f" {settings.max_new_tokens} new tokens.",
            "Use --set max_new_tokens=N with a smaller N.",
        )
    kept = room
    text = tokenizer.decode(ids[-kept:])
    while len(tokenizer.encode(text)) > room:  # text cut within a word may encode to more tokens
        kept -= 1
        text = tokenizer.decode(ids[-kept:])
    return Prompt(prompt.id, text, prompt.place)


def _row(question: Question, sample: Sample, common: dict[str, Any]) -> dict[str, Any]:
    item = Item(sample.text, question.ground_truth, question.choices)
    verdict = score(common["task"], item)
    return {
        "id": question.id,
        "prompt": question.prompt,
        "ground_truth": question.ground_truth,
        "choices": list(question.choices),
        "generate": sample.text,
        "correct": verdict.correct,
        "option": verdict.option,
        "tokens": sample.tokens,
        "finish": sample.finish,
        "cut": sample.prompt.text != question.prompt,
        "prompt_sha256": sha256_text(question.prompt),
        **common,
    }
