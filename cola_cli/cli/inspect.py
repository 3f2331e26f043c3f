"""cola inspect: what is in an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli.console import print_json, table
from cola_cli.cli.options import Invocation, command

SHOWN_TOKENS = 48


@command()
def inspect(
    run: Invocation,
    artifact: Annotated[Path, typer.Argument(help="The artifact to look into.")],
    rows: Annotated[int, typer.Option("--rows", min=0, help="Decoded rows to show.")] = 3,
) -> None:
    """Show an artifact's schema, counts, statistics and a few decoded rows.

    Example: cola inspect runs/demo/tokens --rows 5
    """
    from cola_cli.artifacts.catalog import latent_shape, open_catalog
    from cola_cli.artifacts.manifest import flatten, read_manifest

    manifest = read_manifest(artifact)
    connection = open_catalog([artifact])
    tables = {row[0] for row in connection.execute("SHOW TABLES").fetchall()}
    schema: list[tuple[str, str]] = []
    count = 0
    examples: list[dict[str, Any]] = []
    if "parts" in tables:
        described = connection.execute("DESCRIBE parts").fetchall()
        shape = latent_shape(manifest)
        half = f"HALF[{shape[1]}][{shape[0]}]" if shape else ""
        schema = [(row[0], half if half and row[1] == "BLOB" else row[1]) for row in described]
        found = connection.execute("SELECT count(*) FROM parts").fetchone()
        count = found[0] if found else 0
        examples = _decoded_rows(connection, artifact, rows)
    if run.json:
        print_json(
            {
                "path": str(artifact),
                "kind": manifest.kind,
                "status": manifest.status,
                "fingerprint": manifest.fingerprint,
                "rows": count,
                "schema": [{"column": name, "type": kind} for name, kind in schema],
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
        *([["rows", str(count)]] if schema else []),
    ]
    statistics = [[name, _short(value)] for name, value in flatten(manifest.statistics).items()]
    shown = [[_short(value) for value in example.values()] for example in examples]
    tables_of = [
        (str(artifact), ["about", "value"], about),
        ("columns", ["column", "type"], [list(row) for row in schema]),
        ("statistics", ["statistic", "value"], statistics),
        ("rows", list(examples[0]) if examples else [], shown),
    ]
    for number, (title, columns, cells) in enumerate(t for t in tables_of if t[2]):
        if number:
            print()
        table(title, columns, cells)


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
                # the ends of documents are part of what a row holds
                example["text"] = decode(cell[:SHOWN_TOKENS], skip_special_tokens=False)
            elif isinstance(cell, bytes):
                import numpy as np

                values = np.frombuffer(cell, dtype=np.float16).astype(np.float64)
                example[name] = {"mean": float(values.mean()), "deviation": float(values.std())}
            else:
                example[name] = cell
        examples.append(example)
    return examples


def _short(value: Any, limit: int = 100) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."
