"""`cola inspect`: what is in an artifact, with its first rows decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from cola_cli.artifacts import mirror
from cola_cli.artifacts.catalog import latent_forms, latent_shape, open_catalog
from cola_cli.artifacts.checks import RESTORE
from cola_cli.artifacts.kinds import TOKENIZER
from cola_cli.artifacts.manifest import Manifest, read_manifest
from cola_cli.artifacts.reading import reason
from cola_cli.artifacts.tensors import FORMS
from cola_cli.errors import DamagedArtifact

SHOWN_TOKENS = 48


@dataclass(frozen=True)
class Inspection:
    """An artifact's manifest; of its parts the rows, the columns with their types, and the first rows."""

    manifest: Manifest
    rows: int = 0
    columns: list[tuple[str, str]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)


def inspect_artifact(path: Path, rows: int) -> Inspection:
    """What the artifact at `path` holds, with its first `rows` rows."""
    manifest = read_manifest(path)
    connection = open_catalog([path])
    if ("parts",) not in connection.execute("SHOW TABLES").fetchall():
        return Inspection(manifest)
    columns = [(row[0], row[1]) for row in connection.execute("DESCRIBE parts").fetchall()]
    shape = latent_shape(manifest)
    if shape:
        forms = latent_forms(manifest)
        types = {n: form.described.format(N=shape[0], d=shape[1]) for n, form in forms.items()}
        columns = [(name, types.get(name, kind)) for name, kind in columns]
    try:
        count = connection.execute("SELECT count(*) FROM parts").fetchone()
        examples = _decoded_rows(connection, "posterior" if shape else "parts", path, rows)
    except duckdb.Error as error:
        raise DamagedArtifact(
            f"the parts of {path} cannot be read ({reason(error)}).", RESTORE
        ) from error
    return Inspection(manifest, count[0] if count else 0, columns, examples)


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """What the checkpoint in the authors' layout at `path` is: its digest, its tokenizer, the shapes in it.

    Raises InputError when it is something else.
    """
    from cola_cli.weights.folder import open_model_folder

    model = open_model_folder(path)
    vae, prior = model.configs()
    return {
        "path": str(path),
        "kind": "released checkpoint",
        "fingerprint": model.fingerprint(),
        "tokenizer": model.tokenizer_file() is not None,
        "settings": {"vae": vae.document(), "prior": prior.document()},
    }


def _decoded_rows(connection: Any, table: str, artifact: Path, rows: int) -> list[dict[str, Any]]:
    """The first rows, token ids decoded to text and tensors summarised."""
    result = connection.execute(f"SELECT * FROM {table} LIMIT {rows}")
    columns = [column[0] for column in result.description]
    decode = None
    if mirror.fetch(artifact / TOKENIZER).exists():
        from cola_cli.corpus.tokenizer import load_tokenizer

        decode = load_tokenizer(artifact / TOKENIZER).decode
    examples = []
    for row in result.fetchall():
        example: dict[str, Any] = {}
        for name, cell in zip(columns, row, strict=True):
            if name == "tokens" and decode is not None:
                # the ends of documents are part of what a row holds
                shown = cell[:SHOWN_TOKENS]
                if min(shown, default=0) < 0:
                    example["text"] = f"(no text: {shown[:8]} ...)"
                else:
                    example["text"] = decode(shown, skip_special_tokens=False)
            elif isinstance(cell, bytes):  # of latents whose shape is not known yet
                example[name] = {"bytes": len(cell)}
            elif table == "posterior" and name in FORMS["float16"]:
                values = np.array(cell)
                with np.errstate(invalid="ignore"):  # infinite ones are shown as they are
                    example[name] = {
                        "mean": float(values.mean()),
                        "deviation": float(values.std()),
                    }
            else:
                example[name] = cell
        examples.append(example)
    return examples
