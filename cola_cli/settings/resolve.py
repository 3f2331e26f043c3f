"""Settings from a preset, then a TOML file, then COLA_ variables, then flags; unknown names are errors.

A preset or configuration file has one table a stage (`[vae]`, `[prior]`, ...) with the stage's sections
below it: `[vae.train] steps = 60`. A flag is `--set train.steps=60`; a variable is
`COLA_VAE__TRAIN__STEPS=60`.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cola_cli.artifacts.manifest import require_shallow
from cola_cli.artifacts.reading import reason, shown
from cola_cli.errors import UsageError

# The tables of all stages: a settings file or the environment may speak to several at once.
TABLES = ("tokenize", "vae", "encode", "prior", "baseline", "sample", "eval")
PRESETS = Path(__file__).parent.parent / "presets"
CONFIG_LIMIT = 1 << 20  # bytes

_SettingsT = TypeVar("_SettingsT", bound="Settings")


class Settings(BaseModel):
    """Base of every settings model: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def runtime(default: Any, **constraints: Any) -> Any:
    """A field that does not change the result (threads, intervals of saving), so not its identity."""
    return Field(default, json_schema_extra={"changes_result": False}, **constraints)


def result_settings(settings: BaseModel) -> dict[str, Any]:
    """The settings that change the result, as nested tables: the part that enters the fingerprint."""
    tree: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("changes_result") is False:
            continue
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            tree[name] = result_settings(value)
        else:
            tree[name] = settings.model_dump(mode="json", include={name})[name]
    return tree


def resolve(
    model: type[_SettingsT],
    table: str,
    preset: str | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    assignments: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    recorded: tuple[str, Mapping[str, Any]] | None = None,
) -> _SettingsT:
    """The settings of one stage.

    `recorded` are settings of another artifact to start from, with its name. `assignments` are `name=value`
    texts of `--set`; `flags` maps dotted names to values of dedicated flags (None: not given). Raises
    UsageError naming the setting and where it came from; an unknown name is answered with the nearest
    known one.
    """
    known = _known_names(model)
    values: dict[str, tuple[Any, str]] = {}

    def add(name: str, value: Any, source: str) -> None:
        if name not in known:
            raise UsageError(
                f"{source}: there is no setting {shown(name)!r} in {table}.", nearest(name, known)
            )
        values[name] = (value, source)

    sources = [recorded] if recorded else []
    for source, tree in [*sources, *_files(table, preset, config)]:
        for name, value in _leaves(tree, known):
            add(name, value, source)
    for variable, text in sorted((environ or {}).items()):
        if not variable.startswith("COLA_") or "__" not in variable:
            continue
        spoken_to, *leaves = variable.removeprefix("COLA_").lower().split("__")
        _require_table(spoken_to, table, f"variable {variable}")
        if spoken_to == table:
            add(".".join(leaves), _parse_value(text), f"variable {variable}")
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(
                f"--set {assignment}: a setting is given as name=value.",
                "Write it like --set train.steps=60.",
            )
        add(name.strip(), _parse_value(text.strip()), "--set")
    for name, value in (flags or {}).items():
        if value is not None:
            add(name, value, f"--{name.rpartition('.')[2].replace('_', '-')}")
    return _validate(model, values)


def to_toml(table: str, settings: BaseModel) -> str:
    """The resolved settings as TOML that `--config` reads back."""
    lines: list[str] = []

    def write(name: str, tree: dict[str, Any]) -> None:
        lines.append(f"[{name}]")
        sections = {k: v for k, v in tree.items() if isinstance(v, dict)}
        lines.extend(
            f"{key} = {_toml_value(value)}"
            for key, value in tree.items()
            if key not in sections and value is not None
        )
        lines.append("")
        for key, section in sections.items():
            write(f"{name}.{key}", section)

    write(table, settings.model_dump(mode="json"))
    return "\n".join(lines).rstrip() + "\n"


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known one, else the whole list."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not match:
        leaves = {n: n.rpartition(".")[2] for n in names}
        leaf = name.rpartition(".")[2]
        close = difflib.get_close_matches(leaf, list(leaves.values()), n=1, cutoff=0.6)
        match = [n for n in names if close and leaves[n] == close[0]][:1]
    return f"Did you mean {match[0]}?" if match else f"Known: {', '.join(names)}."


def _known_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            names.extend(_known_names(section, f"{prefix}{name}."))
        elif isinstance(section, type) and dataclasses.is_dataclass(section):
            names.extend(f"{prefix}{name}.{f.name}" for f in dataclasses.fields(section))
        else:
            names.append(prefix + name)
    return names


def _files(table: str, preset: str | None, config: Path | None) -> list[tuple[str, dict[str, Any]]]:
    found = []
    if preset is not None:
        available = sorted(p.stem for p in PRESETS.glob("*.toml"))
        if preset not in available:
            raise UsageError(f"there is no preset {preset!r}.", nearest(preset, available))
        found.append((f"preset {preset}", read_toml(PRESETS / f"{preset}.toml").get(table, {})))
    if config is not None:
        tree = read_toml(config)
        for name in tree:
            _require_table(name, table, str(config))
        found.append((str(config), tree.get(table, {})))
    return found


def _require_table(name: str, table: str, source: str) -> None:
    """Raise UsageError for a table of no stage: its settings would silently have no effect."""
    if name not in (*TABLES, table):
        raise UsageError(
            f"{source}: no stage has a table of settings {shown(name)!r}.", nearest(name, TABLES)
        )


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file of settings. Raises UsageError when it cannot be read."""
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise UsageError(f"{path} is too large for a settings file.", "Name a TOML file.")
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        require_shallow(tree)
        return tree
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}).", "Name a TOML file."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not valid TOML ({reason(error)}).", "Correct that line."
        ) from error


def _leaves(tree: Any, known: list[str], prefix: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield prefix.rstrip("."), tree
        return
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, dict) and name not in known:
            yield from _leaves(value, known, f"{name}.")
        else:
            yield name, value


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # a bare word is a string


def _validate(model: type[_SettingsT], values: dict[str, tuple[Any, str]]) -> _SettingsT:
    tree: dict[str, Any] = {}
    for name, (value, _) in values.items():
        *sections, leaf = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(step) for step in first["loc"])
        given = values.get(name)
        what = (
            f"{given[1]}: setting {name} = {shown(repr(given[0]))}" if given else f"setting {name}"
        )
        why = shown(first["msg"].removeprefix("Value error, "))
        raise UsageError(f"{what} is not possible ({why}).", "Give another value.") from error


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return repr(value)
