"""Settings explained: what each is, its default and its value in every preset; a settings file of all."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel

from cola_cli.artifacts.manifest import flatten
from cola_cli.errors import UsageError
from cola_cli.settings.resolve import PRESET_NAMES, nearest, read_preset
from cola_cli.settings.tables import TABLES

HEAD = "# Settings of cola, for --config"
WIDTH = 100


@dataclass(frozen=True)
class Setting:
    """One setting: dotted name, possible values, default (None: unset), values in presets, meaning."""

    name: str
    kind: str
    default: Any
    presets: dict[str, Any]
    about: str


def sections(table: str, name: str = "") -> dict[str, tuple[str, list[Setting]]]:
    """The settings of a table by section, each section with what it is; the top level is named "".

    name: only this section or setting. Raises UsageError for an unknown table or name, naming the nearest.
    """
    if table not in TABLES:
        raise UsageError(f"there is no table of settings {table!r}.", nearest(table, TABLES))
    presets = {preset: flatten(read_preset(preset).get(table, {})) for preset in PRESET_NAMES}
    found = _sections(TABLES[table], "", presets)
    known = [
        *filter(None, found),
        *(one.name for _, settings in found.values() for one in settings),
    ]
    if name and name not in known:
        raise UsageError(f"there is no setting {name!r} in {table}.", nearest(name, known))
    chosen = {
        section: (
            what,
            [one for one in settings if f"{one.name}.".startswith(f"{name}." if name else "")],
        )
        for section, (what, settings) in found.items()
    }
    return {section: own for section, own in chosen.items() if own[1]}


def _sections(
    model: type[BaseModel], section: str, presets: dict[str, dict[str, Any]]
) -> dict[str, tuple[str, list[Setting]]]:
    own: list[Setting] = []
    found = {section: (about(model), own)}
    for name, field in model.model_fields.items():
        whole = f"{section}.{name}".lstrip(".")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _sections(field.annotation, whole, presets)
            continue
        given = {preset: values[whole] for preset, values in presets.items() if whole in values}
        own.append(
            Setting(whole, _kind(field.annotation), field.default, given, field.description or "")
        )
    return found


def about(model: type[BaseModel]) -> str:
    """What a table or section of settings is, on one line."""
    return " ".join((model.__doc__ or "").split())


def _kind(annotation: Any) -> str:
    """The values that a setting may have, in words."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "list"
    if kinds := [kind for kind in get_args(annotation) if kind is not type(None)]:
        return _kind(kinds[0])
    return {int: "integer", float: "number", str: "text", bool: "true | false"}[annotation]


def shown(value: Any) -> str:
    """A value as a settings file has it, on one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return "unset" if value is None else tomli_w.dumps({"": value}).partition("= ")[2].strip()


def settings_file(preset: str | None = None) -> str:
    """A TOML file of all settings, explained: those of the preset set, the others as comments.

    Raises UsageError for an unknown preset.
    """
    if preset is not None:
        read_preset(preset)
    lines = [f"{HEAD} FILE. A line without # is set; the others show the default."]
    for table in TABLES:
        for section, (what, settings) in sections(table).items():
            lines += ["", *_comment(what), f"[{f'{table}.{section}'.rstrip('.')}]"]
            for one in settings:
                lines += ["", *_comment(f"{one.about} ({one.kind})")]
                leaf = one.name.rpartition(".")[2]
                set_here = preset in one.presets
                value = one.presets[preset] if set_here else one.default  # type: ignore[index]
                lines.append(f"{'' if set_here else '#'}{leaf} = {shown(value)}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH - 2)]
