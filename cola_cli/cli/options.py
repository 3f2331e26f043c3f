"""What commands have in common: each option declared once, flags of settings, and errors that are shown.

    @command("output", "threads", table="encode")
    @setting_flags("batch_size")
    def encode(tokens: Annotated[Path, typer.Argument(...)], run: Invocation) -> None: ...

makes the command `encode` with the argument `tokens`, `--batch-size`, the named common options, and
`--json`, `--quiet` and `--debug`, which every command has.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperCommand
from typer.models import ParameterInfo

from cola_cli.cli.console import Table, errors_shown, print_json, reporter, table, with_addresses
from cola_cli.machine import interruption
from cola_cli.machine.launcher import leads
from cola_cli.machine.threads import MOST
from cola_cli.stages.run import Outcome, Run

if TYPE_CHECKING:
    from cola_cli.settings import Settings


def on_disk(text: str) -> Path:
    """A path to write to. Raises BadParameter for what cannot be one, see `local`."""
    from cola_cli.artifacts.places import local

    with _as_bad_parameter():
        return local(text)


def for_artifact(text: str) -> Path:
    """A path to write an artifact to. Raises BadParameter for what cannot be one, see `artifact_place`."""
    from cola_cli.artifacts.places import artifact_place

    with _as_bad_parameter():
        return artifact_place(text)


@contextlib.contextmanager
def _as_bad_parameter() -> Iterator[None]:
    from cola_cli.errors import UsageError

    try:
        yield
    except UsageError as error:
        raise typer.BadParameter(f"{error.problem} {error.remedy}") from None


def path(text: str | Path) -> Path:
    """A path to read; of an address in an object store its copy, see `_pull`.

    Raises BadParameter for an empty text, of which Path would make the current folder.
    """
    if text == "":
        raise typer.BadParameter("it has no name. Is a variable in the command empty?")
    from cola_cli.artifacts.stores import place_of

    with _as_bad_parameter():
        return place_of(str(text)) or Path(text)  # a default comes as the path that it is


def output_option(help: str, *names: str, artifact: bool = False) -> Any:
    """The option for a place to write to; artifact: which may lie in an object store."""
    parser = for_artifact if artifact else on_disk
    return typer.Option(*(names or ("--output", "-o")), parser=parser, metavar="PATH", help=help)


def _presets(begun: str) -> list[str]:
    from cola_cli.settings.resolve import PRESET_NAMES

    return [name for name in PRESET_NAMES if name.startswith(begun)]


Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", autocompletion=_presets, help="Named settings: tiny, small, base, paper-2b."
    ),
]

# Marks an argument that names a model (`demo`, `hf:org/name`, a folder): the command gets its folder.
MODEL = object()
MODEL_ARGUMENT = typer.Argument(
    help="A prior, a baseline, a checkpoint folder, hf:org/name[@revision], or demo."
)
Model = Annotated[Path, MODEL, MODEL_ARGUMENT]

REQUIRED = inspect.Parameter.empty


def _option(kind: Any, default: Any, *names: str, **about: Any) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(*names, **about)], default


# In the order in which `--help` lists them: (declaration, default).
COMMON: dict[str, tuple[Any, Any]] = {
    "output": (
        Annotated[Path, output_option("Directory of the artifact to make.", artifact=True)],
        REQUIRED,
    ),
    "shard": _option(
        str | None,
        None,
        "--shard",
        metavar="I/N|auto",
        envvar="COLA_SHARD",
        help="Make share I (from 0) of N of the parts only; a last run without it completes them. auto: as"
        " a SLURM array, an Indexed Job of Kubernetes (with COLA_SHARDS, the count) or torchrun says.",
    ),
    "on": _option(
        str | None,
        None,
        "--on",
        metavar="ray[://HOST:PORT]",
        help="Have the parts made as shards by Ray (extra ray): that cluster, the one in RAY_ADDRESS, or else"
        " this machine. The files must be where they are here.",
    ),
    "shards": _option(
        int | None,
        None,
        "--shards",
        min=2,
        help="Shards of --on. Default: one a GPU, or a processor (of --workers or --threads each).",
    ),
    "preset": (Preset, None),
    "config": _option(Path | None, None, "--config", help="TOML file of settings."),
    "set": _option(
        list[str] | None,
        None,
        "--set",
        metavar="NAME=VALUE",
        help="One setting, such as train.steps=60.",
    ),
    "device": _option(
        str, "auto", "--device", help="cpu, cuda, cuda:1 ... or auto: a GPU if there is one."
    ),
    "threads": _option(
        int | None,
        None,
        "--threads",
        min=1,
        max=MOST,
        help="Threads of the matrix library. Default: OMP_NUM_THREADS, or one a core.",
    ),
    "log": _option(
        list[str] | None,
        None,
        "--log",
        metavar="NAMES",
        help="Metrics go to these loggers as well: tensorboard, wandb, trackio, mlflow, or others installed.",
    ),
    "profile": (
        Annotated[
            Path | None,
            output_option(
                "Write a trace of some steps, for Perfetto or chrome://tracing.", "--profile"
            ),
        ],
        None,
    ),
    "overwrite": _option(
        bool, False, "--overwrite", help="Replace what the output holds if it is another artifact."
    ),
    "extend": _option(
        bool,
        False,
        "--extend",
        help="Go on from the state of a shorter run that the output holds, and replace it.",
    ),
    "dry_run": _option(
        bool, False, "--dry-run", help="Print settings, plan and expected cost; write nothing."
    ),
    "json": _option(
        bool, False, "--json", help="Print JSON on stdout, and an error as JSON on stderr."
    ),
    "quiet": _option(
        bool, False, "--quiet", "-q", envvar="COLA_QUIET", help="No progress or remarks on stderr."
    ),
    "debug": _option(
        bool, False, "--debug", envvar="COLA_DEBUG", help="Show tracebacks of errors."
    ),
}
EVERYWHERE = ("json", "quiet", "debug")
RESOLVED = ("preset", "config", "set")  # what settings are resolved from, beside their flags
MACHINE = ("device", "threads")
STAGE = ("output", *MACHINE, "overwrite", "dry_run")
SHARDED = ("shard", "on", "shards", "overwrite")
SHORT = {"max_new_tokens": "-n"}


@dataclass(frozen=True, kw_only=True)
class Invocation(Run):
    """A Run, with what the command line said that is not a stage's concern.

    command: `module:name` of its function. asked: its parameters as they were given. given: values of the
    common options by name. flags: values of setting flags by the setting's dotted name.
    origins: where each setting that is not at its default came from, once they are resolved.
    """

    command: str
    asked: Mapping[str, Any]
    given: Mapping[str, Any]
    table: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """Where the artifact goes."""
        return Path(self.given["output"])

    @property
    def dry_run(self) -> bool:
        """Whether to print the plan alone."""
        return bool(self.given["dry_run"])

    @property
    def json(self) -> bool:
        """Whether the result is one JSON object."""
        return bool(self.given["json"])

    @property
    def shard(self) -> tuple[int, int]:
        """The parts to make: every N-th from part I, as (I, N)."""
        from cola_cli.stages.shards import parse_shard

        return parse_shard(self.given["shard"])

    def make_shards(self) -> None:
        """With --on: have the parts made, so that what is left to do here is to complete the artifact."""
        if self.given["on"] is not None:
            from cola_cli.cli.fleet import make_shards

            make_shards(self.command, self.asked, self.reporter)
        elif self.given["shards"] is not None:
            from cola_cli.errors import UsageError

            raise UsageError("--shards is for --on.", "Give --on ray too, or --shard I/N.")

    def settings(self, recorded: tuple[str, dict[str, Any]] | None = None) -> Any:
        """The resolved settings of the command's table; `recorded` as in `settings.resolve`."""
        from cola_cli.settings import TABLES, resolve

        assert self.table is not None
        preset, config, assignments = (self.given[name] for name in RESOLVED)
        return resolve(
            TABLES[self.table],
            self.table,
            preset,
            config,
            os.environ,
            assignments or (),
            self.flags,
            recorded,
            self.origins,
        )

    def show(self, value: Any, *tables: Table) -> None:
        """Print the result: one JSON object, or tables, those with no rows left out."""
        if self.json:
            print_json(value)
            return
        for number, (title, columns, rows) in enumerate(one for one in tables if one[2]):
            if number:
                print()
            table(title, columns, rows)

    def say(self, lines: list[str], value: Any) -> None:
        """Print the result: one JSON object, or lines."""
        if self.json:
            print_json(value)
        else:
            print(with_addresses("\n".join(lines)), flush=True)

    def show_plan(self, settings: Settings, plan: Mapping[str, Any]) -> None:
        """Print the resolved settings and what the run is expected to take."""
        from cola_cli.settings import to_toml

        lines = [
            "# a value without a source is the default",
            to_toml(self.table or "", settings, self.origins),
        ]
        for name, value in plan.items():
            shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
            lines.append(f"{name.replace('_', ' ')}: {shown}")
        values = settings.model_dump(mode="json")
        self.say(lines, {"settings": values, "origins": self.origins, "plan": plan})

    def show_outcome(
        self, outcome: Outcome, describe: Callable[[dict[str, Any]], list[str]]
    ) -> None:
        """Print the result of a stage: `describe` turns its statistics into lines."""
        if not leads():
            return
        found = outcome.statistics
        if not outcome.changed:
            lines = [f"{outcome.path}: up to date"]
        elif found.keys() == {"parts"}:
            lines = [f"{outcome.path}: {found['parts']} parts done; other processes make the rest"]
        else:
            lines = describe(found)
        self.say(lines, {"path": str(outcome.path), "changed": outcome.changed} | found)


def setting_flags(*names: str, panel: str | None = None) -> Callable[[Any], Any]:
    """Dedicated flags for settings, by their dotted names; type, help and default are the field's."""

    def mark(body: Any) -> Any:
        body.flags = dict.fromkeys(names, panel) | getattr(body, "flags", {})
        return body

    return mark


def command(*common: str, table: str | None = None) -> Callable[[Callable[..., None]], Any]:
    """Make a command of a function that takes its own arguments and `run`, an Invocation.

    common: names of COMMON that it has beside EVERYWHERE. table: of its settings, if it has any.
    """

    def decorate(body: Callable[..., None]) -> Callable[[], None]:
        def declared() -> None: ...

        declared.__name__, declared.__doc__ = body.__name__, body.__doc__
        declared.whole = lambda: _whole(body, common, table)  # type: ignore[attr-defined]
        return declared

    return decorate


class LazyCommand(TyperCommand):
    """A command whose options are declared when it is called: listing all commands needs no settings."""

    @functools.cached_property
    def _whole(self) -> Any:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(self.name)(self.callback.whole())  # type: ignore[union-attr]
        return typer.main.get_command(app)

    def get_params(self, ctx: Any) -> Any:
        """The options of the command and `--help`."""
        return self._whole.get_params(ctx)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        return self._whole.invoke(ctx)


def register(group: typer.Typer, name: str, body: Callable[..., None], **about: Any) -> None:
    """Add a command to a group under a name."""
    group.command(name, cls=LazyCommand, **about)(body)


def _guarded(body: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors become one sentence and an exit code, and whose signals are handled."""

    @functools.wraps(body)
    def run(*args: Any, **options: Any) -> None:
        with errors_shown(bool(options.get("debug")), bool(options.get("json"))):
            interruption.install()
            try:
                body(*args, **options)
            finally:
                interruption.ignore()

    return run


def _whole(
    body: Callable[..., None], common: tuple[str, ...], table: str | None
) -> Callable[..., None]:
    """The function with every option in its signature, as Typer wants it."""
    own = dict(inspect.signature(body, eval_str=True).parameters)
    del own["run"]
    flags = {
        name.rpartition(".")[2]: (name, _flag(table or "", name, panel))
        for name, panel in getattr(body, "flags", {}).items()
    }
    resolved = RESOLVED if table else ()
    shared = {name: COMMON[name] for name in COMMON if name in (*common, *resolved, *EVERYWHERE)}

    def call(**given: Any) -> None:
        asked = dict(given)
        chosen = {name: given[name] for name in shared}
        if chosen["quiet"]:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for name, value in given.items():
            _pull(value, name == "output")
        for name, parameter in own.items():
            if MODEL in getattr(parameter.annotation, "__metadata__", ()):
                given[name] = _found(given[name])
        _require_apart(given)
        body(
            **{name: given[name] for name in own},
            run=Invocation(
                reporter=reporter(chosen["quiet"] or not leads()),
                device=chosen.get("device", "auto"),
                threads=chosen.get("threads"),
                overwrite=chosen.get("overwrite", False),
                log=tuple(chosen.get("log") or ()),
                profile=chosen.get("profile"),
                command=f"{body.__module__}:{body.__name__}",
                asked=asked,
                given=chosen,
                table=table,
                flags={name: given[flag] for flag, (name, _) in flags.items()},
            ),
        )

    declared = {name: (parameter.annotation, parameter.default) for name, parameter in own.items()}
    declared |= {flag: (annotation, None) for flag, (_, annotation) in flags.items()} | shared
    declared = {name: (_read_by_name(kind), default) for name, (kind, default) in declared.items()}
    call.__signature__ = parameters(declared)  # type: ignore[attr-defined]
    call.__annotations__ = {name: annotation for name, (annotation, _) in declared.items()}
    call.__name__, call.__doc__ = body.__name__, body.__doc__
    return _guarded(call)


def _read_by_name(annotation: Any) -> Any:
    """The declaration of a parameter, with `path` as the parser if it is a path or several."""
    if "Path" not in str(annotation):
        return annotation
    kind, *about = get_args(annotation)
    about = [copy.copy(one) for one in about]
    for one in about:
        if isinstance(one, ParameterInfo) and one.parser is None:
            one.parser = path
    return Annotated[kind, *about]


def parameters(declared: Mapping[str, tuple[Any, Any]]) -> inspect.Signature:
    """The signature of keyword arguments, given as annotations with defaults by name."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter(name, kind, default=default, annotation=annotation)
            for name, (annotation, default) in declared.items()
        ]
    )


def _found(name: Any) -> Any:
    """The folder of a model, or of each of several."""
    from cola_cli.weights.names import find_model

    if isinstance(name, Path):
        return find_model(name)
    return [find_model(one) for one in name] if name else name


def _pull(value: Any, output: bool) -> None:
    """Have what lies in an object store as far as a command needs it to begin."""
    from cola_cli.artifacts.mirror import pull

    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, Path):
            pull(one, listed=output)


def _require_apart(given: Mapping[str, Any]) -> None:
    """Raise UsageError when the output would harm a file or directory that the command line names."""
    from cola_cli.artifacts.places import require_apart

    if "overwrite" in given and given.get("output") is not None:
        named = (value for name, value in given.items() if name != "output")
        require_apart(given["output"], [value for value in named if isinstance(value, Path)])


def _flag(table: str, name: str, panel: str | None) -> Any:
    """The declaration of a setting's flag; None means that it was not given."""
    from cola_cli.settings import TABLES
    from cola_cli.settings.resolve import field_of

    about, leaf = field_of(TABLES[table], name), name.rpartition(".")[2]
    kinds = [kind for kind in get_args(about.annotation) if kind is not type(None)]
    kind = kinds[0] if type(None) in get_args(about.annotation) else about.annotation
    default = about.default
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    if Ellipsis in kinds:  # a tuple of any length: the option may be repeated
        kind = list[kinds[0]]  # type: ignore[valid-type]
    option = typer.Option(
        f"--{leaf.replace('_', '-')}",
        *([SHORT[leaf]] if leaf in SHORT else []),
        help=about.description,
        show_default=text if default is not None else False,
        rich_help_panel=panel,
    )
    return Annotated[kind | None, option]
