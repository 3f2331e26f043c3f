"""The table of benchmarks: accuracy with its interval, valid options, chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cola_cli.report.charts import COLOURS, marker, swatch
from cola_cli.report.collect import Collected, Shown
from cola_cli.report.markup import Markup, element, joined
from cola_cli.report.quantities import DASH, percent

COLUMNS = (
    ("run", "run"),
    ("accuracy, 95 % interval", "accuracy"),
    ("", ""),
    ("right", "right"),
    ("valid options", "valid options"),
    ("accuracy given valid", "given valid"),
    ("chance", "chance"),
)
BAR = 170  # pixels
SIDE = 6


def benchmark_table(collected: Collected) -> list[Markup]:
    """One table, a group a task; empty when no evaluation is finished."""
    scored = [one for one in collected.of("evaluation") if _number(one, "accuracy") is not None]
    if not scored:
        return []
    tasks: dict[str, list[Shown]] = {}
    for one in scored:
        tasks.setdefault(str(one.statistics.get("task", one.label)), []).append(one)
    head = element("tr", [element("th", title, scope="col") for title, _ in COLUMNS])
    bodies = [
        element(
            "tbody",
            element(
                "tr", element("th", task, colspan=len(COLUMNS), scope="rowgroup"), class_="task"
            ),
            [_row(one) for one in sorted(runs, key=lambda one: (one.colour, one.label))],
        )
        for task, runs in sorted(tasks.items())
    ]
    written = element("table", element("thead", head), bodies, class_="benchmarks")
    notes = element("p", " ".join(_notes(scored)), class_="note")
    return [element("div", written, class_="scroll", tabindex=0), notes]


def _row(one: Shown) -> Markup:
    accuracy = _number(one, "accuracy") or 0.0
    low, high, chance = (_number(one, name) for name in ("low", "high", "chance"))
    interval = f" {percent(low)} to {percent(high)}" if low is not None and high is not None else ""
    correct, n = one.statistics.get("correct", DASH), one.statistics.get("n", DASH)
    cut = _number(one, "cut_prompts")
    cells: list[Any] = [
        [element("strong", percent(accuracy)), element("span", interval, class_="interval")],
        _bar(one.colour, accuracy, low, high, chance),
        f"{correct} of {n}" + (f", {cut:.0f} cut" if cut else ""),
        percent(_number(one, "valid_options")),
        percent(_number(one, "accuracy_given_valid")),
        percent(chance),
    ]
    return element(
        "tr",
        element("th", swatch(one.colour), _name(one), scope="row"),
        [
            element("td", cell, data_label=label or None)
            for cell, (_, label) in zip(cells, COLUMNS[1:], strict=True)
        ],
    )


def _name(one: Shown) -> Markup:
    model = one.sources.get("model") or f"model {one.inputs.get('model', '')[:12]}"
    return joined([model, element("span", one.named, class_="note")])


def _bar(
    colour: int, accuracy: float, low: float | None, high: float | None, chance: float | None
) -> Markup:
    def x(share: float) -> float:
        return SIDE + share * (BAR - 2 * SIDE)

    pieces = [element("line", x1=x(0), x2=x(1), y1=11, y2=11, class_="gridline")]
    pieces += [
        element("line", x1=x(s), x2=x(s), y1=8, y2=14, class_="gridline") for s in (0, 0.5, 1)
    ]
    if chance is not None:
        tick = element("line", x1=x(chance), x2=x(chance), y1=3, y2=19, class_="chance")
        pieces.append(element("g", element("title", f"chance {percent(chance)}"), tick))
    if low is not None and high is not None:
        pieces.append(element("line", x1=x(low), x2=x(high), y1=11, y2=11, class_="interval"))
    pieces.append(marker(colour, x(accuracy), 11, 4))
    return element(
        "svg",
        element("g", pieces, class_=f"series c{colour % COLOURS}"),
        viewBox=f"0 0 {BAR} 22",
        class_="bar",
        role="img",
        aria_label=f"accuracy {percent(accuracy)} on a scale from 0 to 100 %",
    )


def _notes(scored: Sequence[Shown]) -> list[str]:
    notes = [
        "Right by the released scorer's rules; the upright stroke is chance. Valid options: answers that"
        " mean one of the options at all."
    ]
    if any(_number(one, "low") == _number(one, "high") for one in scored):
        notes.append(
            "Where all answers are right, or all wrong, resampling gives an interval of width zero: it"
            " says nothing about the uncertainty."
        )
    cut = [one for one in scored if _number(one, "cut_prompts")]
    if cut:
        notes.append("Cut: prompts longer than the model's context, which holds only their end.")
    return notes


def _number(one: Shown, name: str) -> float | None:
    value = one.statistics.get(name)
    return float(value) if isinstance(value, int | float) else None
