"""cola study: studies of models along compute or along a setting."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli.console import print_json, table
from cola_cli.cli.options import MACHINE, Invocation, command, output_option

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The TOML file of a study.")]
Folder = Annotated[Path, output_option("Directory of the study's artifacts.")]
Made = Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a study that was run.")]
Overlay = Annotated[
    Path | None, typer.Option("--config", help="TOML laid over the study, table by table.")
]
Corpus = Annotated[
    list[str] | None, typer.Option("--corpus", help="Texts instead of the study's corpus.")
]


@command("preset")
def plan(
    run: Invocation,
    study: StudyFile,
    output: Folder,
    config: Overlay = None,
    corpus: Corpus = None,
) -> None:
    """Show every run before anything starts: parameters, tokens, operations in full and as 6 N D.

    Example: cola study plan pipelines/studies/scaling.toml -o runs/scaling
    """
    from cola_cli.studies.run import plan_rows
    from cola_cli.studies.settings import read_study

    rows = plan_rows(read_study(study, config, corpus or (), run.given["preset"]), output)
    run.show({"runs": rows}, ("runs", list(rows[0]), [[*row.values()] for row in rows]))


@command("preset", *MACHINE)
def run(
    run: Invocation,
    context: typer.Context,
    study: StudyFile,
    output: Folder,
    config: Overlay = None,
    corpus: Corpus = None,
    commands: Annotated[
        bool,
        typer.Option("--commands", help="Print the shell commands of what is missing; do nothing."),
    ] = False,
) -> None:
    """Train and measure what is missing of a study; stop it and run it again as you like.

    Example: cola study run pipelines/studies/scaling.toml -o runs/scaling
    """
    from cola_cli.studies.run import missing_steps, run_study, shell_command
    from cola_cli.studies.settings import read_study

    found = read_study(study, config, corpus or (), run.given["preset"])
    if commands:
        for step in missing_steps(found, output):
            print(shell_command(step, run.device, run.threads))
        return
    execute = executor(context.find_root().command, run.given["quiet"], run.given["debug"])
    count, made = run_study(found, output, execute, run.reporter, run.device, run.threads)
    line = f"{output}: {made} of {count} commands had something to do" if made else ""
    result = {"path": str(output), "commands": count, "made": made}
    run.say([line or f"{output}: up to date"], result)


def executor(root: Any, quiet: bool = False, debug: bool = False) -> Callable[[list[str]], str]:
    """A function that runs `cola` with arguments in this process and returns what it prints on stdout.

    root: the whole command.

    The command reports its own errors; the function then raises typer.Exit with the exit code.
    """
    manners = [*(["--quiet"] if quiet else []), *(["--debug"] if debug else [])]

    def execute(arguments: list[str]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = root.main([*arguments, *manners], prog_name="cola", standalone_mode=False)
        if code:
            raise typer.Exit(code)
        return printed.getvalue()

    return execute


Axis = Annotated[
    str | None,
    typer.Option("--x", help="flops, total_flops (with VAE and latents), paper_flops or tokens."),
]


@command()
def show(
    run: Invocation,
    folder: Made,
    x: Axis = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As tables of Markdown.")] = False,
) -> None:
    """Every metric at every point with its interval over the seeds, and the fitted power laws.

    Example: cola study table runs/scaling
    """
    from cola_cli.studies.results import law_rows, notes, place_rows, study_results
    from cola_cli.studies.run import recorded_study

    study = recorded_study(folder)
    metrics = study.study.metrics
    results = study_results(study, folder)
    if run.json:
        sweeps = [
            {
                "sweep": one.sweep.name,
                "places": place_rows(one, metrics),
                "laws": law_rows(one, metrics, x),
                "real_text": one.levels,
                "missing": one.missing,
            }
            for one in results
        ]
        print_json({"sweeps": sweeps, "notes": notes(study, results)})
        return
    draw = _markdown if markdown else table
    for one in results:
        rows = [_shown(row, metrics) for row in place_rows(one, metrics)]
        if one.levels:
            level = {name: _number(one.levels.get(name)) for name in metrics}
            rows.append(dict.fromkeys(rows[0], "") | {"line": "real text"} | level)
        draw(one.sweep.name, list(rows[0]), [list(row.values()) for row in rows])
        if laws := law_rows(one, metrics, x):
            shown = [[_number(value) for value in row.values()] for row in laws]
            draw(f"{one.sweep.name}: power laws", list(laws[0]), shown)
    for note in notes(study, results):
        run.reporter.note(note)


@command()
def plot(
    run: Invocation,
    folder: Made,
    output: Annotated[Path | None, output_option("The SVG file. Default: RUN/scaling.svg.")] = None,
    x: Axis = None,
) -> None:
    """Draw the curves with intervals and power laws as an SVG file, light or dark as the viewer is.

    Example: cola study plot runs/scaling -o scaling.svg
    """
    from cola_cli.artifacts.files import write_atomic
    from cola_cli.artifacts.places import require_file_place
    from cola_cli.report.drawing import MARK
    from cola_cli.report.study import scaling_drawing
    from cola_cli.studies.results import drawn_curves
    from cola_cli.studies.run import recorded_study

    file = output or folder / "scaling.svg"
    require_file_place(file, "a chart", MARK)
    drawn = scaling_drawing(drawn_curves(recorded_study(folder), folder, x)).encode()
    write_atomic(file, drawn)
    run.say([f"{file}: {len(drawn):,} bytes"], {"path": str(file), "bytes": len(drawn)})


def _shown(row: dict[str, Any], metrics: tuple[str, ...]) -> dict[str, str]:
    """Cells of one place: compute, and `mean [low, high]` of each metric."""
    cells = {name: _number(value) for name, value in row.items() if name not in metrics}
    for metric in metrics:
        value = row[metric]
        cells[metric] = "-" if value is None else _number(value["mean"])
        if value is not None and value["low"] is not None:
            cells[metric] += f" [{_number(value['low'])}, {_number(value['high'])}]"
    return cells


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _markdown(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    print(f"**{title}**\n")
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")
    print()
