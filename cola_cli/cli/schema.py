"""cola schema: what artifacts promise; the JSON schemas of manifests and settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cola_cli.cli.options import Invocation, command


@command()
def schema(
    run: Invocation,
    name: Annotated[
        str,
        typer.Argument(
            help="An artifact (tokens, latents, model, samples, evaluation), manifest, part, or the table of"
            " settings of a stage (tokenize, vae, prior ...)."
        ),
    ],
) -> None:
    """Print what a kind of artifact promises, or the JSON schema of a manifest or of a stage's settings.

    Example: cola schema tokens
    """
    from cola_cli.artifacts.kinds import KINDS
    from cola_cli.artifacts.manifest import pretty_json
    from cola_cli.cli.console import print_result
    from cola_cli.errors import UsageError
    from cola_cli.settings import nearest

    schemas = _models() | KINDS
    if name not in schemas:
        raise UsageError(f"there is no schema {name!r}.", nearest(name, schemas))
    found = KINDS[name].contract() if name in KINDS else _models()[name].model_json_schema()
    print_result([pretty_json(found).decode().rstrip()], found, run.json)


def _models() -> dict[str, Any]:
    from cola_cli.artifacts import Manifest, PartRecord
    from cola_cli.settings import TABLES

    return {"manifest": Manifest, "part": PartRecord} | TABLES
