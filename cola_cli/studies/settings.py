"""A study: models along compute or along one setting, as a TOML file describes them.

The tables of the stages (`[tokenize]`, `[vae.train]`, `[prior.model]` ...) stand in it as in any settings
file and hold for all runs. A `[[sweep]]` has lines (what is compared) and points (what changes along a
line); each may bring settings of its own, the point's above the line's. A run is one line at one point with
one seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from cola_cli.artifacts.reading import reason
from cola_cli.errors import UsageError
from cola_cli.families import baselines
from cola_cli.settings import TABLES, Settings, nearest
from cola_cli.settings.resolve import read_toml

JUDGE = "judge"  # settings of the autoregressive model that judges what the others write
PRIORS = ("frozen", "joint")  # models of a line besides the baselines: modes of the prior
# What a point's x may be besides a setting.
COMPUTE = ("flops", "total_flops", "paper_flops", "tokens")

Tree = dict[str, Any]
Name = Annotated[str, Field(min_length=1, max_length=60)]


class Line(Settings):
    """What is compared: a kind of model with settings of its own.

    match: the line of a prior whose width, depth, optimiser, steps and batches a baseline takes over.
    """

    name: Name
    model: str
    match: str | None = None
    settings: Tree = Field(default_factory=dict)

    @field_validator("model")
    @classmethod
    def _model_is_known(cls, model: str) -> str:
        known = (*PRIORS, *(family.command for family in baselines()))
        if model not in known:
            raise ValueError(f"there is no model {model!r}, only {', '.join(known)}")
        return model


class Point(Settings):
    """A place along a line: settings, or how long to train.

    share: of the steps that the settings say. flops, paper_flops: as many steps as come nearest to this
    training compute, counted in full or as 6 N D.
    """

    share: float | None = Field(default=None, gt=0, le=1)
    flops: float | None = Field(default=None, gt=0)
    paper_flops: float | None = Field(default=None, gt=0)
    settings: Tree = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_length(self) -> Point:
        if sum(x is not None for x in (self.share, self.flops, self.paper_flops)) > 1:
            raise ValueError("only one of share, flops and paper_flops can be given")
        return self


class Sweep(Settings):
    """Lines at points. x: `flops`, `total_flops`, `paper_flops`, `tokens`, or the name of a setting."""

    name: Name
    x: str = "flops"
    lines: tuple[Line, ...] = Field(alias="line", min_length=1)
    points: tuple[Point, ...] = Field(alias="point", min_length=1)


class StudySettings(Settings):
    """What all runs share besides the settings of the stages.

    passages: held-out passages that every model continues and whose last word it is asked for; context:
    characters of each. judge: a model's folder for generative perplexity, instead of a [judge] table. tasks:
    files of benchmark data by task; each is a metric too. limit: items of each.
    """

    corpus: tuple[str, ...] = ()
    tokenizer: str | None = None
    preset: str | None = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    metrics: tuple[str, ...] = ("perplexity", "entropy", "words", "cloze")
    judge: str | None = None
    passages: int = Field(default=128, ge=1)
    context: int = Field(default=240, ge=20)
    tasks: dict[str, str] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _seeds_differ(self) -> StudySettings:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed occurs twice")
        return self


class Study(Settings):
    """A whole study; `tree` is what the file says, so that a run can keep a copy."""

    study: StudySettings
    sweeps: tuple[Sweep, ...] = Field(min_length=1)
    settings: Tree
    judge: Tree | None
    tree: Tree


def read_study(
    path: Path,
    overlay: Path | None = None,
    corpus: Iterable[str] = (),
    preset: str | None = None,
) -> Study:
    """The study of a TOML file, `overlay` (another such file, or parts of one) laid over it.

    corpus, preset: instead of those that the files name.

    Raises UsageError saying what is wrong with either.
    """
    tree = read_toml(path)
    if overlay is not None:
        tree = merged(tree, read_toml(overlay))
    given = {"corpus": list(corpus), "preset": preset}
    tree = merged(tree, {"study": {name: value for name, value in given.items() if value}})
    return parse_study(tree, str(path))


def parse_study(tree: Tree, name: str) -> Study:
    """The study that the tables of a file describe; `name` stands for it in errors."""
    known = ("study", "sweep", JUDGE, *TABLES)
    for table in tree:
        if table not in known:
            raise UsageError(f"{name}: there is no table {table!r}.", nearest(table, known))
    sweeps = tree.get("sweep", [])
    if not isinstance(sweeps, list) or not sweeps:
        raise UsageError(f"{name} has no [[sweep]].", "Give it one, with lines and points.")
    try:
        return Study.model_validate(
            {
                "study": tree.get("study", {}),
                "sweeps": [_sweep(sweep) for sweep in sweeps],
                "settings": {table: tree[table] for table in TABLES if table in tree},
                "judge": tree.get(JUDGE),
                "tree": tree,
            }
        )
    except ValidationError as error:
        raise UsageError(f"{name} is not a study ({reason(error)}).", "Correct it.") from error


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """`above` laid over `below`, table by table; lists are replaced."""
    found = dict(below)
    for name, value in above.items():
        own = found.get(name)
        both = isinstance(own, Mapping) and isinstance(value, Mapping)
        found[name] = merged(own, value) if both else value  # type: ignore[arg-type]
    return found


def _sweep(sweep: Any) -> Any:
    """The settings of lines and points gathered under `settings`."""
    if not isinstance(sweep, dict):
        return sweep
    made = dict(sweep)
    for kind in ("line", "point"):
        if isinstance(made.get(kind), list):
            made[kind] = [_gathered(entry) for entry in made[kind]]
    return made


def _gathered(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    own = {name: value for name, value in entry.items() if name not in TABLES}
    return own | {"settings": {name: entry[name] for name in TABLES if name in entry}}
