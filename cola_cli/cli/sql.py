"""cola sql: artifacts as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.console import print_json, table
from cola_cli.cli.options import Invocation, command


@command()
def sql(
    run: Invocation,
    query: Annotated[str, typer.Argument(help="One SQL query, in DuckDB's dialect.")],
    artifacts: Annotated[
        list[Path] | None,
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
        print_json(
            {"columns": columns, "rows": [[_json_value(cell) for cell in row] for row in rows]}
        )
    else:
        table("", columns, [list(row) for row in rows])


def _json_value(cell: object) -> object:
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell).hex()
    return cell if isinstance(cell, str | int | float | list | dict | None) else str(cell)
