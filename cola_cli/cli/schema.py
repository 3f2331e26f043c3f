"""cola schema: the JSON schema of manifests and settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cola_cli.cli import options


def schema(
    name: Annotated[
        str,
        typer.Argument(
            help="manifest, part, or the table of settings of a stage: tokenize, vae, prior ..."
        ),
    ],
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print the JSON schema of an artifact's manifest or of a stage's settings.

    Example: cola schema manifest
    """
    from cola_cli.artifacts.manifest import pretty_json
    from cola_cli.cli.console import print_result
    from cola_cli.errors import UsageError
    from cola_cli.settings import nearest

    models = _models()
    if name not in models:
        raise UsageError(f"there is no schema {name!r}.", nearest(name, models))
    found = models[name].model_json_schema()
    print_result([pretty_json(found).decode().rstrip()], found, json)


def _models() -> dict[str, Any]:
    from cola_cli.artifacts import Manifest, PartRecord
    from cola_cli.settings import TABLES

    return {"manifest": Manifest, "part": PartRecord} | TABLES
