"""cola inspect: what is in an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli.console import print_json, table
from cola_cli.cli.options import Invocation, command


@command()
def inspect(
    run: Invocation,
    artifact: Annotated[Path, typer.Argument(help="The artifact to look into.")],
    rows: Annotated[int, typer.Option("--rows", min=0, help="Decoded rows to show.")] = 3,
) -> None:
    """Show an artifact's schema, counts, statistics and a few decoded rows.

    Example: cola inspect runs/demo/tokens --rows 5
    """
    from cola_cli.artifacts.manifest import flatten
    from cola_cli.stages.inspect import inspect_artifact

    found = inspect_artifact(artifact, rows)
    manifest, columns, examples = found.manifest, found.columns, found.examples
    if run.json:
        print_json(
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
            }
        )
        return
    about = [
        ["kind", manifest.kind],
        ["status", manifest.status],
        ["fingerprint", manifest.fingerprint[:12]],
        ["made by", f"cola {manifest.cola_version} in {manifest.seconds:.0f} s"],
        ["files", str(len(manifest.files))],
        *([["rows", str(found.rows)]] if columns else []),
    ]
    statistics = [[name, _short(value)] for name, value in flatten(manifest.statistics).items()]
    shown = [[_short(value) for value in example.values()] for example in examples]
    tables_of = [
        (str(artifact), ["about", "value"], about),
        ("columns", ["column", "type"], [list(row) for row in columns]),
        ("statistics", ["statistic", "value"], statistics),
        ("rows", list(examples[0]) if examples else [], shown),
    ]
    for number, (title, heads, cells) in enumerate(t for t in tables_of if t[2]):
        if number:
            print()
        table(title, heads, cells)


def _short(value: Any, limit: int = 100) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."
