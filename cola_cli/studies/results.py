"""Results of a study: values with intervals, power laws, and the file that charts are drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cola_cli.artifacts.kinds import Evaluation, TrainedModel
from cola_cli.artifacts.reading import read_record
from cola_cli.errors import InputError
from cola_cli.studies.measurements import Curves, Fit, Level, Measurement
from cola_cli.studies.plan import (
    ANSWERS,
    FROM_TEXT_PREFIXES,
    FROM_TRAINING,
    FROM_WORDS,
    Compute,
    Trial,
    plan_study,
    source_of,
)
from cola_cli.studies.settings import COMPUTE, Study, StudySettings, Sweep
from cola_cli.studies.statistics import Interval, PowerLaw, intervals, power_law

REAL_TEXT = "real text"
# metrics whose mean is the geometric one
LOGARITHMIC = ("perplexity", "validation_loss", "validation_flow")
SHARES = ("words", "pairs", "memorised", "mauve", *FROM_TEXT_PREFIXES)  # and all accuracies
OWN_LOSS = (
    "validation_ metrics are each model's own loss (flow matching, next token, a bound of masked diffusion):"
    " compare them along a line, never between lines of different models."
)
ONE_JUDGE = (
    "perplexity is that of the generated text under one judge; read it together with entropy, which falls"
    " when a model repeats itself."
)
# of the compute, in a row of a table
TAKEN = ("parameters", "tokens", "flops", "total_flops", "paper_flops", "token_flops")
AXES = {
    "flops": "training compute, FLOPs",
    "total_flops": "training compute with VAE and latents, FLOPs",
    "paper_flops": "training compute as 6 N D, FLOPs",
    "tokens": "tokens of training",
}


@dataclass(frozen=True)
class Cell:
    """One line at one point: what its runs take, and every metric over the seeds that are done."""

    sweep: str
    line: str
    point: int
    x: float | None
    compute: Compute
    seeds: int
    values: dict[str, Interval | None]


@dataclass(frozen=True)
class Results:
    """Of one sweep. levels: real text's value by metric; missing: runs that are not done."""

    sweep: Sweep
    places: list[Cell]
    levels: dict[str, float]
    missing: int

    def curve(self, line: str, metric: str, axis: str) -> list[tuple[float, Interval]]:
        """(x, value) at each place of a line that has both."""
        own = [place for place in self.places if place.line == line]
        found = [(_along(place, axis), place.values[metric]) for place in own]
        return [(x, value) for x, value in found if x is not None and value is not None]

    def law(self, line: str, metric: str, axis: str) -> PowerLaw | None:
        """The power law through the means of a line, along compute only."""
        curve = self.curve(line, metric, axis)
        if axis not in COMPUTE or not curve:
            return None
        return power_law([x for x, _ in curve], [value.mean for _, value in curve])


def study_results(study: Study, folder: Path) -> list[Results]:
    """The results of every sweep, as far as its runs are done. Raises InputError when none is."""
    runs = plan_study(study, folder)
    found = [
        _sweep_results(sweep, study.study, [run for run in runs if run.sweep == sweep.name])
        for sweep in study.sweeps
    ]
    if not any(results.places for results in found):
        raise InputError(f"no run of the study in {folder} is finished.", "Use `cola study run`.")
    return found


def notes(study: Study, results: Sequence[Results]) -> list[str]:
    """What a reader of the metrics must know."""
    metrics = study.study.metrics
    found = [OWN_LOSS] if any(metric.startswith(FROM_TRAINING) for metric in metrics) else []
    found += [ONE_JUDGE] if "perplexity" in metrics else []
    if len(study.study.seeds) > 1:
        found.append(
            "intervals are 95 % over seeds, with one deviation for a whole line (Student's t); power laws"
            " go through the means."
        )
    if missing := sum(one.missing for one in results):
        found.append(f"{missing} runs are not finished and are left out.")
    return found


def sweep_curves(
    results: Results, metrics: Iterable[str], x: str | None = None, suffix: str = ""
) -> Curves:
    """The points and fits of one sweep along its own axis or `x`; places without a number are left out.

    suffix: behind the name of every metric.
    """
    axis = x or results.sweep.x
    points, fits = [], []
    for metric in metrics:
        for line in (line.name for line in results.sweep.lines):
            named = {"family": line, "metric": metric + suffix}
            points += [
                Measurement(**named, flops=at, value=value.mean, low=value.low, high=value.high)
                for at, value in results.curve(line, metric, axis)
                if at > 0
            ]
            if law := results.law(line, metric, axis):
                fits.append(Fit(**named, coefficient=law.coefficient, exponent=law.exponent))
    return Curves(
        points=points,
        fits=fits,
        levels=[
            Level(metric=metric + suffix, name=REAL_TEXT, value=value)
            for metric, value in results.levels.items()
        ],
        x=AXES.get(axis, axis),
        x_log=axis in COMPUTE,
        linear=[metric + suffix for metric in metrics if metric not in LOGARITHMIC],
    )


def drawn_curves(study: Study, folder: Path, x: str | None = None) -> dict[str, Curves]:
    """The curves of every sweep, by its name. Raises InputError when there is nothing to draw."""
    metrics = study.study.metrics
    drawn = {
        one.sweep.name: sweep_curves(one, metrics, x)
        for one in study_results(study, folder)
        if one.places
    }
    if not any(one.points for one in drawn.values()):
        raise InputError(
            f"the points of the study in {folder} have no numeric x to plot against.",
            "Give --x flops.",
        )
    return drawn


def compute_curves(study: Study, folder: Path) -> Curves | None:
    """What `cola report` draws: the sweeps along compute; None without any."""
    along = [one for one in study_results(study, folder) if one.sweep.x in COMPUTE]
    found = [
        sweep_curves(
            one, study.study.metrics, suffix=f" ({one.sweep.name})" if len(along) > 1 else ""
        )
        for one in along
    ]
    joined = {
        name: [entry for one in found for entry in getattr(one, name)]
        for name in ("points", "fits", "levels", "linear")
    }
    return found[0].model_copy(update=joined) if found else None


def place_rows(results: Results, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """A row for every line and point: what its runs take, and the intervals of the metrics."""
    rows: list[dict[str, Any]] = []
    for place in results.places:
        found = ((name, place.values[name]) for name in metrics)
        rows.append(
            {
                "line": place.line,
                **({} if results.sweep.x in COMPUTE else {results.sweep.x: place.x}),
                "seeds": place.seeds,
                **{name: getattr(place.compute, name) for name in TAKEN},
                **{name: None if value is None else asdict(value) for name, value in found},
            }
        )
    return rows


def law_rows(
    results: Results, metrics: Sequence[str], x: str | None = None
) -> list[dict[str, Any]]:
    """The power law of every metric and line that has one: value = coefficient * x ** exponent."""
    return [
        {"metric": metric, "line": line.name} | asdict(law)
        for metric in metrics
        for line in results.sweep.lines
        if (law := results.law(line.name, metric, x or results.sweep.x))
    ]


def _sweep_results(sweep: Sweep, common: StudySettings, runs: list[Trial]) -> Results:
    metrics = common.metrics
    done = [run for run in runs if all(step.done for step in run.steps)]
    found: dict[int, dict[str, float | None]] = {}
    levels: dict[str, list[float]] = {}
    for run in done:
        found[id(run)] = {metric: _value(run, metric, common.tasks) for metric in metrics}
        for metric in metrics:
            if (level := _real_text(run, metric, common.tasks)) is not None:
                levels.setdefault(metric, []).append(level)
    places = []
    for line in sweep.lines:
        own = [run for run in done if run.line == line.name]
        points = sorted({run.point for run in own})
        groups = [[run for run in own if run.point == point] for point in points]
        columns = {
            metric: _column(
                metric, [[found[id(r)][metric] for r in g] for g in groups], common.tasks
            )
            for metric in metrics
        }
        for place, group in enumerate(groups):
            first = group[0]
            values = {metric: column[place] for metric, column in columns.items()}
            places.append(
                Cell(sweep.name, line.name, first.point, first.x, first.compute, len(group), values)
            )
    means = {metric: sum(values) / len(values) for metric, values in levels.items()}
    return Results(sweep, places, means, len(runs) - len(done))


def _column(
    metric: str, groups: list[list[float | None]], tasks: Iterable[str]
) -> list[Interval | None]:
    """A metric along a line; None at points where no seed has it."""
    kept = [[value for value in group if value is not None] for group in groups]
    log = metric in LOGARITHMIC and all(value > 0 for group in kept for value in group)
    share = source_of(metric, tasks).startswith(ANSWERS) or metric.startswith(SHARES)
    measured = iter(intervals([group for group in kept if group], log, share))
    return [next(measured) if group else None for group in kept]


def _value(run: Trial, metric: str, tasks: Iterable[str]) -> float | None:
    source = source_of(metric, tasks)
    if source == "":
        value = TrainedModel.open(run.trained.path).manifest.statistics.get(metric)
        return None if value is None else float(value)
    if source.startswith(ANSWERS):
        return Evaluation.open(run.measured[source].path).statistics.accuracy
    return _measured(run, source).samples.get(metric)


def _real_text(run: Trial, metric: str, tasks: Iterable[str]) -> float | None:
    """What real text of the same shape has."""
    source = source_of(metric, tasks)
    if source == "" or source.startswith(ANSWERS):
        return None
    found = _measured(run, source)
    return ((found.validation if metric in FROM_WORDS else found.held_out) or {}).get(metric)


class _Measured(BaseModel):
    """What `cola eval text` and `cola eval words` print: metrics of the samples and of real text."""

    model_config = ConfigDict(frozen=True)

    samples: dict[str, float | None]
    held_out: dict[str, float | None] | None = None
    validation: dict[str, float | None] | None = None


def _measured(run: Trial, source: str) -> _Measured:
    remedy = "Remove it and use `cola study run` again."
    return read_record(run.measured[source].path, _Measured, remedy)


def _along(place: Cell, axis: str) -> float | None:
    return float(getattr(place.compute, axis)) if axis in COMPUTE else place.x
