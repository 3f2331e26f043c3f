"""The map of the rooms is kept: no import upwards, no import circle, the kinds of model in one file."""

from __future__ import annotations

import ast
import graphlib
import io
import tokenize
from pathlib import Path

import pytest

import cola_cli

ROOT = Path(cola_cli.__file__).parent
# From the top to the bottom; rooms in one row are siblings that do not know one another.
LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"report"},
    {"studies", "serving"},
    {"stages"},
    {"evaluation"},
    {"api"},
    {"families"},
    {"training", "sampling"},
    {"cost"},
    {"weights"},
    {"corpus"},
    {"settings"},
    {"artifacts"},
    {"machine"},
    {"models"},
    {"flow"},
    {"errors", "reporting", "version"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# The words for the kinds of model, which `families.py` alone may spell.
KINDS = {"autoregressive", "llada", "ar"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in sorted(ROOT.rglob("*.py"))
    }


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cola_cli"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("cola_cli")}
    return found


def strings(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every plain string of a file."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return [(t.start[0], t.string.strip("\"'")) for t in tokens if t.type == tokenize.STRING]


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


KNOWN = modules()
GRAPH = {name: imports(path, KNOWN) for name, path in KNOWN.items()}


@pytest.mark.parametrize("module", [name for name in KNOWN if name != "cola_cli"])
def test_no_import_runs_upwards(module: str) -> None:
    mine = room(module)
    assert mine in LEVEL, (
        f"{mine} has no place on the map: add it to LAYERS and docs/architecture.md"
    )
    for target in GRAPH[module]:
        theirs = room(target)
        if theirs in ("", mine):
            continue
        assert LEVEL[theirs] > LEVEL[mine], (
            f"{module} imports {target}, which stands above or beside it"
        )


def test_there_is_no_import_circle() -> None:
    graphlib.TopologicalSorter({k: v - {k} for k, v in GRAPH.items()}).prepare()


@pytest.mark.parametrize("module", list(KNOWN))
def test_the_name_of_a_kind_is_spelt_in_families_alone(module: str) -> None:
    if module in ("cola_cli.families",):
        pytest.skip("this is the place")
    for line, text in strings(KNOWN[module]):
        assert text not in KINDS, f"{KNOWN[module]}, line {line}: {text}"


def test_a_further_training_stage_is_its_own_files_and_three_places() -> None:
    """`cola distill` is the example; docs/architecture.md is the recipe."""
    own = {
        "cola_cli.settings.distill",
        "cola_cli.training.objectives.distillation",
        "cola_cli.training.objectives.chained",
    }
    naming = {
        name
        for name, path in KNOWN.items()
        if GRAPH[name] & own or any(text == "distill" for _, text in strings(path))
    }
    places = {"cola_cli.families", "cola_cli.settings.tables", "cola_cli.cost.training"}
    assert naming - own == places
