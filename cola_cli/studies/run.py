"""`cola study`: the commands of a study, printed or executed one after the other."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cola_cli.artifacts.files import write_atomic
from cola_cli.artifacts.manifest import pretty_json
from cola_cli.artifacts.reading import read_record
from cola_cli.errors import InputError
from cola_cli.machine import interruption
from cola_cli.reporting import Reporter
from cola_cli.studies.measurements import CURVES
from cola_cli.studies.plan import Command, Trial, commands_of, plan_study
from cola_cli.studies.results import compute_curves
from cola_cli.studies.settings import Study, parse_study

STUDY_FILE = "study.json"  # what `cola study table` and `plot` read
PRINTING = ("eval words", "eval text")  # their output is the file
WITHOUT_DEVICE = ("tokenize", "eval cloze", "eval words")

# of the compute of a run, in a row of the plan
PLANNED = (
    "parameters", "all_parameters", "steps", "tokens", "flops", "earlier_flops", "paper_flops", "token_flops",
)  # fmt: skip

# Runs `cola` with these arguments in this process, and returns what it prints on stdout. Raises on failure.
Execute = Callable[[list[str]], str]


def run_study(
    study: Study,
    folder: Path,
    execute: Execute,
    reporter: Reporter,
    device: str = "auto",
    threads: int | None = None,
) -> tuple[int, int]:
    """Make what is missing of a study; how many commands there are, and how many had something to do.

    `execute` runs the commands: the argument lists that `shell_command` prints.
    """
    commands = commands_of(plan_study(study, folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STUDY_FILE, pretty_json(study.tree))
    changed = 0
    for number, one in enumerate(commands, start=1):
        if one.done:
            continue
        interruption.check()
        reporter.note(f"{number} of {len(commands)}: cola {one.stage}, {one.path}")
        printed = execute(arguments(one, device, threads))
        if one.stage in PRINTING:
            write_atomic(one.path, printed.encode())
        changed += 1
    if (curves := compute_curves(study, folder)) is not None:
        write_atomic(folder / CURVES, pretty_json(curves.model_dump(mode="json")))
    return len(commands), changed


def missing_steps(study: Study, folder: Path) -> list[Command]:
    """The commands of a study that have something to do, in an order in which they can be run."""
    return [step for step in commands_of(plan_study(study, folder)) if not step.done]


def plan_rows(study: Study, folder: Path) -> list[dict[str, Any]]:
    """What every run takes, and how far it is. Touches nothing."""
    return [_plan_row(run) for run in plan_study(study, folder)]


def _plan_row(run: Trial) -> dict[str, Any]:
    return {
        "sweep": run.sweep,
        "line": run.line,
        "x": run.x,
        "seed": run.seed,
        **{name: getattr(run.compute, name) for name in PLANNED},
        "left": sum(not step.done for step in run.steps),
        "model": str(run.trained.path),
    }


def recorded_study(folder: Path) -> Study:
    """The study that was last run into `folder`. Raises InputError if there is not one."""
    path = folder / STUDY_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} does not hold a study.", "Name the folder that `cola study run` made."
        )
    remedy = "Run `cola study run` again."
    return parse_study(read_record(path, dict[str, Any], remedy), str(path))


def shell_command(step: Command, device: str = "auto", threads: int | None = None) -> str:
    """The shell command of a step; files appear whole or not at all."""
    text = shlex.join(["cola", *arguments(step, device, threads)])
    if step.stage in PRINTING:
        new = shlex.quote(f"{step.path}.new")
        text += f" > {new} && mv {new} {shlex.quote(str(step.path))}"
    return text


def arguments(step: Command, device: str = "auto", threads: int | None = None) -> list[str]:
    """The arguments of `cola` that make a step: printed by `shell_command`, executed by `run_study`."""
    first = [str(made.path) for made in list(step.inputs.values())[:1]]
    words = [*step.stage.split(), *first, *step.words]
    if step.stage not in PRINTING:
        words += ["-o", str(step.path)]
    words += [] if step.preset is None else ["--preset", step.preset]
    words += [word for assignment in step.assignments for word in ("--set", assignment)]
    if step.stage not in WITHOUT_DEVICE:
        words += [] if device == "auto" else ["--device", device]
        words += [] if threads is None else ["--threads", str(threads)]
    return words
