"""cola status, inspect, sql, verify: what artifacts hold and promise."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cola_cli.cli.console import print_json, table
from cola_cli.cli.options import MODEL, Invocation, command
from cola_cli.errors import DamagedArtifact

if TYPE_CHECKING:
    from cola_cli.stages.status import State

WATCH_SECONDS = 1.0  # between two looks
SHORT = 100  # characters of a cell


@command()
def status(
    run: Invocation,
    path: Annotated[Path, typer.Argument(help="An artifact, or a directory that holds some.")],
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Show every change until all are complete: shards fill a directory."
        ),
    ] = False,
) -> None:
    """List artifacts with their state, progress, inputs, and whether a newer input makes them stale.

    Example: cola status runs/demo
    """
    from rich.console import Console

    from cola_cli.stages.status import survey

    rows = survey(path)
    _show_states(run, rows)
    while watch and any(row.unfinished for row in rows):
        time.sleep(WATCH_SECONDS)
        before, rows = rows, survey(path)
        if rows != before:
            if sys.stdout.isatty() and not run.json:
                Console().clear()
            _show_states(run, rows)


def _show_states(run: Invocation, rows: list[State]) -> None:
    states = [f"{r.state}; a new one {r.replacement}" if r.replacement else r.state for r in rows]
    columns = ["artifact", "kind", "state", "progress", "made from", "next"]
    if run.json or not sys.stdout.isatty():
        cells = [
            [row.path, row.kind, state, row.progress, ", ".join(row.inputs), row.next]
            for row, state in zip(rows, states, strict=True)
        ]
        run.show({"artifacts": [row.__dict__ for row in rows]}, ("", columns, cells))
        return
    # a line each; below it what is long
    first = [
        [row.path, row.kind, state.partition(" (")[0], row.progress]
        for row, state in zip(rows, states, strict=True)
    ]
    table("", columns[:4], first)
    used = {name.partition(" ")[2] for row in rows for name in row.inputs}
    lines = [f"{r.path}: {s}" for r, s in zip(rows, states, strict=True) if " (" in s]
    lines += [
        f"run next: {row.next}"
        for row in rows
        if row.next and (row.path not in used or row.state != "complete")
    ]
    run.say(lines, None)


@command()
def inspect(
    run: Invocation,
    artifact: Annotated[
        Path, MODEL, typer.Argument(help="The artifact or checkpoint folder to look into.")
    ],
    rows: Annotated[
        int, typer.Option("--rows", min=0, max=10**6, help="Decoded rows to show.")
    ] = 3,
) -> None:
    """Show an artifact's schema, counts, statistics and a few decoded rows, or a checkpoint's shapes.

    Example: cola inspect runs/demo/tokens --rows 5
    """
    from cola_cli.artifacts.artifact import is_artifact
    from cola_cli.artifacts.manifest import flatten
    from cola_cli.stages.inspect import inspect_artifact, inspect_checkpoint

    if artifact.is_dir() and not is_artifact(artifact):
        checkpoint = inspect_checkpoint(artifact)
        lines = [[name, _short(value)] for name, value in flatten(checkpoint).items()]
        run.show(checkpoint, ("", ["about", "value"], lines))
        return
    found = inspect_artifact(artifact, rows)
    manifest, columns, examples = found.manifest, found.columns, found.examples
    about = [
        ["kind", manifest.kind],
        ["status", manifest.status],
        ["fingerprint", manifest.fingerprint[:12]],
        ["made by", f"cola {manifest.cola_version} in {manifest.seconds:.0f} s"],
        ["files", str(len(manifest.files))],
        *([["rows", str(found.rows)]] if columns else []),
        *([["fetched", address] for address in manifest.environment.get("fetched", [])]),
    ]
    statistics = [[name, _short(value)] for name, value in flatten(manifest.statistics).items()]
    shown = [[_short(value) for value in example.values()] for example in examples]
    run.show(
        {
            "path": str(artifact),
            "kind": manifest.kind,
            "status": manifest.status,
            "fingerprint": manifest.fingerprint,
            "rows": found.rows,
            "schema": [{"column": name, "type": kind} for name, kind in columns],
            "statistics": manifest.statistics,
            "settings": manifest.settings,
            "examples": examples,
        },
        (str(artifact), ["about", "value"], about),
        ("columns", ["column", "type"], columns),
        ("statistics", ["statistic", "value"], statistics),
        ("rows", list(examples[0]) if examples else [], shown),
    )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= SHORT else text[: SHORT - 3] + "..."


@command()
def sql(
    run: Invocation,
    query: Annotated[str, typer.Argument(help="One SQL query, in DuckDB's dialect.")],
    artifacts: Annotated[
        list[Path] | None,
        MODEL,
        typer.Argument(
            help="Artifacts; each is a schema named by its directory, run_NAME where DuckDB has a NAME."
        ),
    ] = None,
) -> None:
    """Query the shards, metrics and manifests of artifacts with DuckDB.

    Example: cola sql "select step, loss from vae.metrics order by step desc limit 3" runs/demo/vae
    """
    from cola_cli.artifacts import catalog

    columns, rows = catalog.query(artifacts or [], query)
    if run.json:
        rows = [tuple(_json_value(cell) for cell in row) for row in rows]
        print_json({"columns": columns, "rows": rows})
    else:
        table("", columns, rows)


def _json_value(cell: object) -> object:
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell).hex()
    return cell if isinstance(cell, str | int | float | list | dict | None) else str(cell)


@command()
def log(
    run: Invocation,
    artifact: Annotated[Path, MODEL, typer.Argument(help="A trained model.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="tensorboard, wandb, trackio, mlflow, or another logger that is installed."
        ),
    ],
) -> None:
    """Give the metrics of a finished or running training to a logger.

    TensorBoard's files are in tensorboard/NAME beside the artifact NAME.

    Example: cola log runs/demo/prior --to tensorboard
    """
    from cola_cli.artifacts.artifact import METRICS
    from cola_cli.artifacts.mirror import fetch
    from cola_cli.training.loggers import Loggers, find_loggers
    from cola_cli.training.metrics import Metrics

    metrics = Metrics(fetch(artifact / METRICS))
    loggers = Loggers(find_loggers([to]), artifact, run.reporter)
    metrics.read()
    for row in metrics.rows:
        loggers.log(int(row["step"]), {name: row[name] for name in row.keys() - {"step"}})
    loggers.close()
    run.say([f"{artifact}: {len(metrics.rows)} rows"], {"rows": len(metrics.rows)})


@command()
def verify(
    run: Invocation,
    paths: Annotated[
        list[Path], MODEL, typer.Argument(help="Artifacts, or directories that hold some.")
    ],
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Drop what is damaged, so that the next run makes it again."),
    ] = False,
) -> None:
    """Re-read every byte of artifacts and name each damaged, missing or foreign file.

    With --repair, what is damaged or missing is dropped, and the next run makes just that again; foreign
    files are left where they are. Exit code 5 when anything is found; an unfinished artifact whose files are
    whole is `incomplete`, which is not damage: the exit code is 0.

    Example: cola verify runs/demo
    """
    from cola_cli.stages.verify import verify_artifacts

    found = verify_artifacts(paths, repair, run.reporter)
    damaged = [finding for result in found.results for finding in result.findings]
    run.say(
        [
            f"{r.directory}: {'damaged' if r.findings else r.status}, {r.files} files, {r.bytes:,} bytes"
            for r in found.results
        ]
        + [f"  {finding.problem}" for finding in damaged]
        + [f"dropped {name}" for name in found.dropped]
        + [f"run next: {command}" for command in found.again],
        {
            "artifacts": [
                {
                    "path": str(r.directory),
                    "status": r.status,
                    "files": r.files,
                    "bytes": r.bytes,
                    "findings": [{"path": f.path, "problem": f.problem} for f in r.findings],
                }
                for r in found.results
            ],
            "dropped": found.dropped,
            "next": found.again,
        },
    )
    if damaged and not repair:
        raise DamagedArtifact(
            f"{len(damaged)} file(s) are damaged, missing or foreign: {damaged[0].problem}",
            "Give --repair to drop them, then run the stage again.",
        )
