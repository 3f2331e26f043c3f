"""Settings from a preset, then a TOML file, then COLA_ variables, then flags; unknown names are errors.

A preset or configuration file has one table a stage (`[vae]`, `[prior]`, ...) with the stage's sections
below it: `[vae.train] steps = 60`. A flag is `--set train.steps=60`; a variable is
`COLA_VAE__TRAIN__STEPS=60`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, RootModel, ValidationError

from cola_cli.artifacts.manifest import Tree, flatten
from cola_cli.artifacts.reading import read_record, shown
from cola_cli.errors import UsageError, is_encodable
from cola_cli.settings.fields import Settings
from cola_cli.settings.tables import TABLES

PRESETS = Path(__file__).parent.parent / "presets"
PRESET_NAMES = ("tiny", "small", "base", "paper-2b")  # by size
CONFIG_LIMIT = 1 << 20  # bytes

_SettingsT = TypeVar("_SettingsT", bound=Settings)


def resolve(
    model: type[_SettingsT],
    table: str,
    preset: str | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    assignments: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    recorded: tuple[str, dict[str, Any]] | None = None,
    origins: dict[str, str] | None = None,
) -> _SettingsT:
    """The settings of one stage; `origins` receives where each value that is not a default came from.

    `recorded` are settings of another artifact to start from, with its name. `assignments` are `name=value`
    texts of `--set`; `flags` maps dotted names to values of dedicated flags (None: not given). Raises
    UsageError naming the setting and where it came from; an unknown name is answered with the nearest
    known one.
    """
    known = known_names(model)
    values: dict[str, tuple[Any, str]] = {}

    def add(name: str, value: Any, source: str) -> None:
        if name not in known:
            raise UsageError(
                f"{source}: there is no setting {shown(name)!r} in {table}.", nearest(name, known)
            )
        texts = [
            one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)
        ]
        if not all(map(is_encodable, texts)):
            raise UsageError(
                f"{source}: the value {shown(value)!r} of {name} is not UTF-8.", "Give it in UTF-8."
            )
        if _holds_truth(value) and field_of(model, name).annotation is not bool:
            raise UsageError(
                f"{source}: setting {name} = {shown(value)} is not possible (true and false are not"
                " numbers).",
                "Give another value.",
            )
        values[name] = (value, source)

    for source, tree in [*([recorded] if recorded else []), *_files(table, preset, config)]:
        for name, value in (flatten(tree) if isinstance(tree, dict) else {"": tree}).items():
            if value != {}:  # a table with nothing in it
                add(name, value, source)
    for name, text, source in _variables(table, environ or {}):
        add(name, _parse_value(text), source)
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
    settings = _validate(model, table, values)
    if origins is not None:
        origins |= {name: source for name, (_, source) in values.items()}
        chosen, defaults = (flatten(one.model_dump()) for one in (settings, model()))
        derived = (name for name in chosen.keys() - values if chosen[name] != defaults[name])
        origins |= dict.fromkeys(derived, "follows from other settings")
    return settings


def to_toml(table: str, settings: BaseModel, origins: Mapping[str, str] | None = None) -> str:
    """The resolved settings as TOML that `--config` reads back; an unset setting is left out.

    With `origins` each value that is not a default has its source as a comment.
    """
    section, lines = "", []
    for line in tomli_w.dumps(
        {table: settings.model_dump(mode="json", exclude_none=True)}
    ).splitlines():
        if line.startswith("["):
            section = line.strip("[]").removeprefix(table).lstrip(".")
        name = f"{section}.{line.partition(' = ')[0]}".lstrip(".")
        lines.append(f"{line}  # {source}" if (source := (origins or {}).get(name)) else line)
    return "\n".join(lines) + "\n"


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


def field_of(model: type[BaseModel], name: str) -> Any:
    """The field of a setting, by its dotted name."""
    *sections, leaf = name.split(".")
    for section in sections:
        found: Any = model.model_fields[section].annotation
        model = found
    return model.model_fields[leaf]


def _holds_truth(value: Any) -> bool:
    """Whether there is a truth value in it, which to Python is a number."""
    return any(map(_holds_truth, value)) if isinstance(value, list) else isinstance(value, bool)


def known_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all settings of a table."""
    names = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            names.extend(known_names(section, f"{prefix}{name}."))
        else:
            names.append(prefix + name)
    return names


def _variables(table: str, environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Name, text and source of each setting of a table that a variable sets."""
    for variable, text in sorted(environ.items()):
        if variable.startswith("COLA_") and "__" in variable:
            spoken_to, *leaves = variable.removeprefix("COLA_").lower().split("__")
            _require_table(spoken_to, table, f"variable {variable}")
            if spoken_to == table:
                yield ".".join(leaves), text, f"variable {variable}"


def _files(table: str, preset: str | None, config: Path | None) -> list[tuple[str, dict[str, Any]]]:
    found = []
    if preset is not None:
        found.append((f"preset {preset}", read_preset(preset).get(table, {})))
    if config is not None:
        tree = read_toml(config)
        for name in tree:
            _require_table(name, table, str(config))
        found.append((str(config), tree.get(table, {})))
    return found


def read_preset(name: str) -> dict[str, Any]:
    """The tables of a preset. Raises UsageError for an unknown name."""
    available = sorted(path.stem for path in PRESETS.glob("*.toml"))
    if name not in available:
        raise UsageError(f"there is no preset {name!r}.", nearest(name, available))
    return read_toml(PRESETS / f"{name}.toml")


def _require_table(name: str, table: str, source: str) -> None:
    """Raise UsageError for a table of no stage: its settings would silently have no effect."""
    if name not in (*TABLES, table):
        raise UsageError(
            f"{source}: no stage has a table of settings {shown(name)!r}.", nearest(name, TABLES)
        )


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file of settings. Raises UsageError when it cannot be read."""
    remedy = "Name a TOML file, and correct what is wrong in it."
    return read_record(path, _Tables, remedy, UsageError, CONFIG_LIMIT, toml=True).root


class _Tables(RootModel[Tree]):
    """The tables of a file of settings."""


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # a bare word is a string


def _validate(
    model: type[_SettingsT], table: str, values: dict[str, tuple[Any, str]]
) -> _SettingsT:
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
        place = ".".join(str(step) for step in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        why = shown(said.replace("Input should be", "it must be"))
        given = [name for name in values if f"{place}.".startswith(f"{name}.")]
        # values that do not go together: all that were given to their table
        within = [name for name in values if not place or name.startswith(f"{place}.")]
        sources = ", ".join(dict.fromkeys(values[name][1] for name in within))
        problem = f"{table}.{place}".rstrip(".") + f": {why}."
        if sources:
            problem = f"{sources}: {problem}"
        if given:
            value, source = values[given[0]]
            try:
                written = shown(repr(value))
            except ValueError:  # TOML has hexadecimal numbers that Python does not write in decimal
                written = "a number of thousands of digits"
            problem = f"{source}: setting {given[0]} = {written} is not possible ({why})."
        raise UsageError(problem, "Give another value.") from error
