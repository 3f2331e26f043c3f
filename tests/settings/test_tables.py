"""Every table of settings: described, and the same as in artifacts of the version before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cola_cli.settings import TABLES, result_settings

RUN = Path(__file__).parent.parent / "format1" / "run"
TABLE_OF = {
    "tokenize": "tokenize",
    "train vae": "vae",
    "encode": "encode",
    "train prior": "prior",
    "train ar": "baseline",
    "train llada": "baseline",
    "sample": "sample",
    "eval": "eval",
}
LATER = {"distill", "likelihood"}  # stages that the version before did not have
MANIFESTS = {
    path.parent.name: json.loads(path.read_bytes()) for path in sorted(RUN.glob("*/manifest.json"))
}


def undescribed(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from undescribed(field.annotation, f"{prefix}.{name}")
        elif not field.description:
            yield f"{prefix}.{name}"


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_says_what_it_is(table: str) -> None:
    assert list(undescribed(TABLES[table], table)) == []


def test_artifacts_of_every_table_are_compared() -> None:
    seen = {TABLE_OF[manifest["identity"]["stage"]] for manifest in MANIFESTS.values()}
    assert seen == set(TABLES) - LATER


@pytest.mark.parametrize("name", MANIFESTS)
def test_settings_of_the_version_before_have_the_same_names_values_and_order(name: str) -> None:
    manifest = MANIFESTS[name]
    model = TABLES[TABLE_OF[manifest["identity"]["stage"]]]
    settings = model.model_validate(manifest["settings"])
    written = shared_with(settings.model_dump(mode="json"), manifest["settings"])
    assert json.dumps(written) == json.dumps(manifest["settings"])
    # an identity may leave out a table (the masks, of `train ar`) or hold more (the task, of `eval run`)
    own, ours = manifest["identity"]["settings"], result_settings(settings)
    shared = [name for name in own if name in ours]
    assert json.dumps({k: ours[k] for k in ours if k in own}) == json.dumps(
        {k: own[k] for k in shared}
    )


def test_defaults_have_the_names_and_order_of_the_version_before() -> None:
    for manifest in MANIFESTS.values():
        model = TABLES[TABLE_OF[manifest["identity"]["stage"]]]
        defaults = shared_with(model().model_dump(mode="json"), manifest["settings"])
        assert _names(defaults) == _names(manifest["settings"])


def shared_with(tree: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The settings that the version before had as well; later ones are not in its manifests."""
    return {
        name: shared_with(value, before[name]) if isinstance(value, dict) else value
        for name, value in tree.items()
        if name in before
    }


def _names(tree: object) -> object:
    if not isinstance(tree, dict):
        return None
    return [(name, _names(value)) for name, value in tree.items()]
