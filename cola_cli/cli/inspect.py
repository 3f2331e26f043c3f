"""cola inspect: what is in an artifact."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli import options
from cola_cli.cli.console import print_json, table

SHOWN_TOKENS = 48


def inspect(
    artifact: Annotated[Path, typer.Argument(help="The artifact to look into.")],
    rows: Annotated[int, typer.Option("--rows", min=0, help="Decoded rows to show.")] = 3,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show an artifact's schema, counts, statistics and a few decoded rows.

    Example: cola inspect runs/demo/tokens --rows 5
    """
    from cola_cli.artifacts.catalog import open_catalog
    from cola_cli.artifacts.manifest import flatten, read_manifest

    manifest = read_manifest(artifact)
    connection = open_catalog([artifact])
    has_parts = any(p.suffix != ".json" for p in (artifact / "parts").glob("*"))
    schema: list[tuple[Any, ...]] = []
    count = 0
    examples: list[dict[str, Any]] = []
    if has_parts:
        schema = connection.execute("DESCRIBE parts").fetchall()
        found = connection.execute("SELECT count(*) FROM parts").fetchone()
        count = found[0] if found else 0
        examples = _decoded_rows(connection, artifact, rows)
    statistics = flatten(manifest.statistics)
    if json:
        print_json(
            {
                "path": str(artifact),
                "kind": manifest.kind,
                "status": manifest.status,
                "fingerprint": manifest.fingerprint,
                "rows": count,
                "schema": [{"column": row[0], "type": row[1]} for row in schema],
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
        *([["rows", str(count)]] if has_parts else []),
    ]
    table(str(artifact), ["", "value"], about)
    if schema:
        table("columns", ["column", "type"], [[row[0], row[1]] for row in schema])
    if statistics:
        table("statistics", ["name", "value"], [[n, _short(v)] for n, v in statistics.items()])
    if examples:
        table("rows", list(examples[0]), [list(example.values()) for example in examples])


def _decoded_rows(connection: Any, artifact: Path, rows: int) -> list[dict[str, Any]]:
    """The first rows, token ids decoded to text and tensors summarised."""
    result = connection.execute(f"SELECT * FROM parts LIMIT {rows}")
    columns = [column[0] for column in result.description]
    tokenizer_file = artifact / "tokenizer.json"
    decode = None
    if tokenizer_file.exists():
        from cola_cli.corpus.tokenizer import load_tokenizer

        decode = load_tokenizer(tokenizer_file).decode
    examples = []
    for row in result.fetchall():
        example: dict[str, Any] = {}
        for name, cell in zip(columns, row, strict=True):
            if name == "tokens" and decode is not None:
                example["text"] = decode([int(token) for token in cell[:SHOWN_TOKENS]])
            elif isinstance(cell, bytes):
                import numpy as np

                values = np.frombuffer(cell, dtype=np.float16).astype(np.float64)
                example[name] = f"mean {values.mean():.3f}, deviation {values.std():.3f}"
            else:
                example[name] = _short(cell)
        examples.append(example)
    return examples


def _short(value: Any, limit: int = 100) -> str:
    text = value if isinstance(value, str) else json_module.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."
