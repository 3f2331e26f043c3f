"""Artifacts as DuckDB tables: parts, metrics, manifest, files and records, one schema an artifact."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from cola_cli.artifacts import mirror
from cola_cli.artifacts.duckdb_names import duckdb_list
from cola_cli.artifacts.manifest import Manifest, flatten, read_manifest
from cola_cli.artifacts.origin import stays_home
from cola_cli.artifacts.reading import reason, shown
from cola_cli.artifacts.tensors import FORMS, Form
from cola_cli.errors import DamagedArtifact, InputError, UsageError

VIEWS = (
    ("parts", "parts/*.parquet", "read_parquet"),
    ("parts", "parts/*.jsonl.zst", "read_json"),
    ("records", "parts/*.json", "read_json"),
    ("metrics", "metrics*.parquet", "read_parquet"),
    ("metrics", "metrics/*.parquet", "read_parquet"),  # while training runs
)


# names of DuckDB's own databases and schemas
OWNED = ("main", "temp", "system", "memory", "pg_catalog", "information_schema")


def open_catalog(artifacts: list[Path]) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the tables of the named artifacts.

    Each artifact is a schema named after its directory, with `run_` before it where DuckDB has that name
    already: `tokens.parts`, `vae.metrics`, `prior.manifest`
    (name, value), `vae.files`, `tokens.records` (statistics of the parts). The schemas are on the
    search path in the order named, so that `parts` alone means the first artifact that has parts.
    Latents are stored as blobs: `latents.posterior` is the view of the parts that shows mean and logvar as
    FLOAT[d][N], and `half_list(blob)` makes one flat list of a blob of half-precision numbers.
    """
    connection = duckdb.connect(":memory:")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.create_function(
        "half_list", _half_list, [duckdb.sqltype("BLOB")], duckdb.sqltype("FLOAT[]")
    )
    schemas: list[str] = []
    for path in artifacts:
        schema = re.sub(r"\W", "_", path.resolve().name)
        if schema.casefold() in OWNED:
            schema = f"run_{schema}"
        if schema.casefold() in map(str.casefold, schemas):
            raise UsageError(
                f"two of the artifacts are called {schema}, as DuckDB reads names.",
                "Query them one after the other.",
            )
        schemas.append(schema)
        _add_schema(connection, schema, path)
    if schemas:
        connection.execute(f"SET search_path = '{','.join([*schemas, 'main'])}'")
    return connection


def query(artifacts: list[Path], sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of a query over the artifacts' tables. Raises UsageError on wrong SQL."""
    try:
        result = open_catalog(artifacts).execute(sql)
        if result is None:  # nothing but spaces and comments
            raise UsageError(
                "the query is empty.", 'Such as: cola sql "select * from metrics" VAE.'
            )
        columns = [column[0] for column in result.description or []]
        return columns, result.fetchall()
    except (duckdb.Error, UnicodeDecodeError) as error:
        asked = f" (asked of {', '.join(map(str, artifacts))})" if artifacts else ""
        raise UsageError(
            f"the query failed: {reason(error)}{asked}.",
            'See the tables with: cola sql "show all tables" ARTIFACT..., damage with: cola verify.',
        ) from error


def _add_schema(connection: duckdb.DuckDBPyConnection, schema: str, path: Path) -> None:
    manifest = read_manifest(path)
    mirror.fetch_all(path / record.path for record in manifest.files)
    connection.execute(f'CREATE SCHEMA "{schema}"')
    document = manifest.model_dump(mode="json", exclude={"files"})
    rows = [(name, json.dumps(value)) for name, value in flatten(document).items()]
    _add_table(connection, f'"{schema}".manifest', "name VARCHAR, value JSON", rows)
    files = [(record.path, record.bytes, record.sha256) for record in manifest.files]
    _add_table(connection, f'"{schema}".files', "path VARCHAR, bytes BIGINT, sha256 VARCHAR", files)
    for view, pattern, reader in VIEWS:
        found = list(path.glob(pattern))
        if not found:
            continue
        for file in found:
            if not stays_home(file, path):
                raise DamagedArtifact(f"{file} is a link that leaves the artifact.", "Remove it.")
        try:
            connection.execute(
                f'CREATE OR REPLACE VIEW "{schema}".{view} AS'
                f" SELECT * FROM {reader}({duckdb_list(in_order(found))},"
                " union_by_name = true, hive_partitioning = false)"
            )
        except duckdb.Error as error:
            raise InputError(
                f"{path}: {pattern} cannot be read ({reason(error)}).",
                f"See whether it is damaged: cola verify {path}",
            ) from error
    if shape := latent_shape(manifest):
        tensors = []
        for column, form in latent_forms(manifest).items():
            function = f"{schema}_{column}"
            connection.create_function(
                function,
                functools.partial(_rows, form, shape),
                [duckdb.sqltype("BLOB")],
                duckdb.sqltype("FLOAT[][]"),
            )
            tensors.append(f'"{function}"({column}) AS {column}')
        connection.execute(
            f'CREATE VIEW "{schema}".posterior AS'
            f' SELECT * REPLACE ({", ".join(tensors)}) FROM "{schema}".parts'
        )


def in_order(files: list[Path]) -> list[Path]:
    """By number, also where one has more digits than another."""
    return sorted(files, key=lambda file: (len(file.name), file.name))


def latent_shape(manifest: Manifest) -> tuple[int, int] | None:
    """(N, d) of the tensors in a latents artifact that is finished and not empty."""
    shape = manifest.statistics.get("latent_shape") if manifest.kind == "latents" else None
    match shape:
        case [int(positions), int(channels)] if positions > 0 and channels > 0:
            return positions, channels
    return None


def latent_forms(manifest: Manifest) -> dict[str, Form]:
    """How the parts of a latents artifact hold means and log-variances."""
    stored = str(manifest.identity.settings.get("stored", "float16"))
    if stored not in FORMS:
        raise InputError(
            f"the latents are stored as {shown(stored)}, which this cola does not know.",
            "Install a newer cola.",
        )
    return FORMS[stored]


def _add_table(
    connection: duckdb.DuckDBPyConnection, name: str, columns: str, rows: list[tuple[Any, ...]]
) -> None:
    connection.execute(f"CREATE TABLE {name} ({columns})")
    if rows:
        marks = ", ".join("?" for _ in rows[0])
        connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)


def _half_list(blob: bytes) -> list[float]:
    return np.frombuffer(blob, dtype=np.float16).astype(np.float32).tolist()


def _rows(form: Form, shape: tuple[int, int], blob: bytes) -> list[list[float]]:
    return form.tensor(blob, shape).astype(np.float32).tolist()
