"""cola init, settings, schema: what can be set and what artifacts promise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli.options import Invocation, Preset, command, output_option
from cola_cli.errors import OutputConflict


@command()
def init(
    run: Invocation,
    output: Annotated[Path | None, output_option("The file to write. Default: cola.toml.")] = None,
    preset: Preset = None,
) -> None:
    """Write a settings file for --config: every setting of every stage, explained.

    Settings of --preset are set; the others are comments that show the default.

    Example: cola init --preset tiny -o cola.toml
    """
    from cola_cli.artifacts.files import write_atomic
    from cola_cli.artifacts.places import require_file_place
    from cola_cli.settings.describe import settings_file

    text = settings_file(preset)
    file = output or Path("cola.toml")
    require_file_place(file, "a settings file")
    if file.exists():
        raise OutputConflict(f"{file} exists.", "Choose another name; nothing was touched.")
    write_atomic(file, text.encode())
    run.say([f"{file}: written; use it with --config {file}"], {"path": str(file)})


@command()
def settings(
    run: Invocation,
    table: Annotated[
        str | None, typer.Argument(help="The stage: tokenize, vae, prior ... Without: all of them.")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="One setting or section, such as train.steps or train.")
    ] = None,
) -> None:
    """Explain settings: their default, their value in every preset, and what they are.

    Example: cola settings prior train
    """
    from cola_cli.settings import TABLES
    from cola_cli.settings.describe import about, sections, shown

    if table is None:
        rows = [[name, about(model)] for name, model in TABLES.items()]
        run.show({"tables": dict(rows)}, ("", ["table", "what it is"], rows))
        return
    found = sections(table, name or "")
    tables = []
    for section, (what, own) in found.items():
        rows = [
            [
                one.name,
                shown(one.default),
                ", ".join(f"{preset} {shown(value)}" for preset, value in one.presets.items()),
                f"{one.about} ({one.kind})",
            ]
            for one in own
        ]
        title = f"{table}.{section}".rstrip(".") + f": {what}"
        tables.append((title, ["setting", "default", "presets", "what it is"], rows))
    every = [one.__dict__ for _, own in found.values() for one in own]
    run.show({"table": table, "settings": every}, *tables)


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
    from cola_cli.errors import UsageError
    from cola_cli.settings import nearest

    schemas = _models() | KINDS
    if name not in schemas:
        raise UsageError(f"there is no schema {name!r}.", nearest(name, schemas))
    found = KINDS[name].contract() if name in KINDS else _models()[name].model_json_schema()
    run.say([pretty_json(found).decode().rstrip()], found)


def _models() -> dict[str, Any]:
    from cola_cli.artifacts import Manifest, PartRecord
    from cola_cli.settings import TABLES

    return {"manifest": Manifest, "part": PartRecord} | TABLES
