"""`cola study`: the runs of a study made one after the other, and what came of them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.files import write_atomic
from cola_cli.artifacts.manifest import pretty_json
from cola_cli.artifacts.reading import read_json
from cola_cli.errors import InputError
from cola_cli.families import FAMILIES
from cola_cli.machine import interruption
from cola_cli.reporting import Reporter
from cola_cli.stages.run import Run as How
from cola_cli.studies.commands import Run, Step, commands_of
from cola_cli.studies.measurements import CURVES
from cola_cli.studies.plan import plan_study
from cola_cli.studies.results import compute_curves
from cola_cli.studies.settings import Study, parse_study

TRAINING = {family.stage: family for family in FAMILIES.values()}
STUDY_FILE = "study.json"  # what `cola study table` and `plot` read
STUDY_LIMIT = 16 << 20  # bytes
NGRAM = 8  # of the figure `memorised`, as `cola eval text` has it


def run_study(
    study: Study,
    folder: Path,
    reporter: Reporter,
    device: str = "auto",
    threads: int | None = None,
) -> tuple[int, int]:
    """Make what is missing of a study; how many commands there are, and how many had something to do."""
    steps = commands_of(plan_study(study, folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STUDY_FILE, pretty_json(study.tree))
    changed = 0
    for number, step in enumerate(steps, start=1):
        if step.done:
            continue
        interruption.check()
        reporter.note(f"{number} of {len(steps)}: cola {step.stage}, {step.path}")
        perform(step, reporter, device, threads)
        changed += 1
    if (curves := compute_curves(study, folder)) is not None:
        write_atomic(folder / CURVES, pretty_json(curves.model_dump(mode="json")))
    return len(steps), changed


def missing_steps(study: Study, folder: Path) -> list[Step]:
    """The commands of a study that have something to do, in an order in which they can be run."""
    return [step for step in commands_of(plan_study(study, folder)) if not step.done]


def plan_rows(study: Study, folder: Path) -> list[dict[str, Any]]:
    """What every run takes, and how far it is. Touches nothing."""
    return [_plan_row(run) for run in plan_study(study, folder)]


def _plan_row(run: Run) -> dict[str, Any]:
    compute = run.compute
    left = [step for step in run.steps if not step.done]
    return {
        "sweep": run.sweep,
        "line": run.line,
        "x": run.x,
        "seed": run.seed,
        "parameters": compute.parameters,
        "all_parameters": compute.all_parameters,
        "steps": compute.steps,
        "tokens": compute.tokens,
        "flops": compute.flops,
        "earlier_flops": compute.earlier_flops,
        "paper_flops": compute.paper_flops,
        "token_flops": compute.token_flops,
        "left": len(left),
        "model": str(run.trained.path),
    }


def recorded_study(folder: Path) -> Study:
    """The study that was last run into `folder`. Raises InputError without one."""
    path = folder / STUDY_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no study.", "Name the folder that `cola study run` made.")
    tree = read_json(path, STUDY_LIMIT)
    if not isinstance(tree, dict):
        raise InputError(f"{path} is not a study.", "Run `cola study run` again.")
    return parse_study(tree, str(path))


def perform(step: Step, reporter: Reporter, device: str, threads: int | None) -> None:
    """Run one command of a study in this process."""
    inputs = {name: made.path for name, made in step.inputs.items()}
    match step.stage:
        case "tokenize":
            from cola_cli.stages.tokenize import tokenize

            given = step.given["tokenizer"]
            tokenizer = Path(given) if given else None
            corpus = step.given["corpus"]
            tokenize(corpus, step.path, step.settings, tokenizer, False, reporter)
        case "encode":
            from cola_cli.stages.encode import encode

            encode(
                inputs["tokens"], inputs["vae"], step.path, step.settings, reporter, device, threads
            )
        case stage if stage in TRAINING:
            from cola_cli.stages.train import train

            family, how = TRAINING[stage], How(reporter=reporter, device=device, threads=threads)
            train(family, inputs[family.reads], step.path, step.settings, how)
        case "sample":
            from cola_cli.sampling.prompts import read_prompts
            from cola_cli.stages.sample import sample_to_artifact

            prompts = list(read_prompts(inputs["prompts"]))
            sample_to_artifact(
                inputs["model"], prompts, step.path, step.settings, reporter, device, threads
            )
        case "eval run":
            from cola_cli.evaluation.tasks import built_in_template, read_questions
            from cola_cli.stages.evaluate import run_evaluation

            task, limit = step.given.get("task", "lambada"), step.given.get("limit")
            data = inputs.get("data") or Path(step.given["data"])
            questions = read_questions(data, built_in_template(task), limit)
            run_evaluation(
                inputs["model"], task, questions, data, step.path, step.settings,
                reporter, device, threads,
            )  # fmt: skip
        case _:
            write_atomic(step.path, _file(step, inputs, reporter, device, threads))


def _file(
    step: Step,
    inputs: dict[str, Path],
    reporter: Reporter,
    device: str,
    threads: int | None,
) -> bytes:
    """The content of a step that makes a file and no artifact."""
    if step.stage == "eval cloze":
        from cola_cli.evaluation.cloze import cloze_lines

        return cloze_lines(Artifact.open(inputs["tokens"], "tokens"), **step.given)
    if step.stage == "eval words":
        from cola_cli.stages.eval_text import evaluate_words

        return pretty_json(evaluate_words(inputs["samples"], inputs["tokens"]))
    from cola_cli.stages.eval_text import evaluate_text

    given = step.given.get("judge")
    judge = inputs.get("judge") or (Path(given) if given else None)
    return pretty_json(
        evaluate_text(
            inputs["samples"], inputs["tokens"], judge, None, NGRAM, reporter, device, threads
        )
    )


def command(step: Step) -> str:
    """The shell command of a step; files appear whole or not at all."""
    inputs = {name: str(made.path) for name, made in step.inputs.items()}
    sets = [part for assignment in step.assignments for part in ("--set", assignment)]
    out = ["-o", str(step.path)]
    preset = [] if step.preset is None else ["--preset", step.preset]
    common = [*out, *preset, *sets]
    match step.stage:
        case "tokenize":
            own = ["--tokenizer", step.given["tokenizer"]] if step.given["tokenizer"] else []
            words = [*step.given["corpus"], *own, *common]
        case "encode":
            words = [inputs["tokens"], "--vae", inputs["vae"], *common]
        case stage if stage in TRAINING:
            match = ["--match", inputs["match"]] if "match" in inputs else []
            words = [inputs[TRAINING[stage].reads], *match, *common]
        case "sample":
            words = [inputs["model"], "--prompts", inputs["prompts"], *common]
        case "eval run":
            task, limit = step.given.get("task", "lambada"), step.given.get("limit")
            data = inputs.get("data") or step.given["data"]
            few = [] if limit is None else ["--limit", str(limit)]
            words = [inputs["model"], "--task", task, "--data", data, *few, *common]
        case "eval cloze":
            count, context = (str(step.given[name]) for name in ("count", "context"))
            words = [inputs["tokens"], "--count", count, "--context", context, *out]
        case "eval words":
            words = [inputs["samples"], "--tokens", inputs["tokens"], "--json"]
        case _:
            judge = inputs.get("judge") or step.given.get("judge")
            asked = ["--judge", judge] if judge else []
            words = [inputs["samples"], "--tokens", inputs["tokens"], *asked, "--json"]
    text = shlex.join(["cola", *step.stage.split(), *words])
    if step.stage in ("eval words", "eval text"):  # these print
        new = shlex.quote(f"{step.path}.new")
        text += f" > {new} && mv {new} {shlex.quote(str(step.path))}"
    return text
