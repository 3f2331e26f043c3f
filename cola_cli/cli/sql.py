"""cola sql: artifacts as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli import options
from cola_cli.cli.console import print_json, table


def sql(
    query: Annotated[str, typer.Argument(help="One SQL query, in DuckDB's dialect.")],
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(help="Artifacts; each is a schema named by its directory."),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Query the shards, metrics and manifests of artifacts with DuckDB.

    Example: cola sql "select step, loss from vae.metrics order by step desc limit 3" runs/demo/vae
    """
    from cola_cli.artifacts import catalog

    columns, rows = catalog.query(artifacts or [], query)
    if json:
        print_json(
            {"columns": columns, "rows": [[_json_value(cell) for cell in row] for row in rows]}
        )
    else:
        table("", columns, [list(row) for row in rows])


def _json_value(cell: object) -> object:
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell).hex()
    return cell if isinstance(cell, str | int | float | list | dict | None) else str(cell)
