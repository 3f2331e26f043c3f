"""Configs of networks: what lies on disk is read as before and written in the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cola_cli.artifacts.manifest import pretty_json
from cola_cli.models.config import LATER, PriorConfig, Shape, TextVAEConfig, TransformerConfig

RUN = Path(__file__).parent.parent / "format1" / "run"
KINDS: dict[str, type[Shape]] = {
    "vae": TextVAEConfig,
    "prior": PriorConfig,
    "transformer": TransformerConfig,
}


@pytest.mark.parametrize("path", sorted(RUN.glob("*/*/config.json")), ids=lambda p: str(p)[-30:])
def test_a_config_of_the_version_before_is_written_in_the_same_bytes(path: Path) -> None:
    kind = KINDS[path.parent.name]
    read = kind.model_validate(json.loads(path.read_bytes()), strict=True)
    assert pretty_json(read.document()) == path.read_bytes()


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_a_config_file_has_every_field_of_the_first_format(kind: type[Shape]) -> None:
    """The others are in it where they differ from their defaults."""
    later = {
        name
        for name, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and LATER in field.json_schema_extra
    }
    assert sorted(kind.KEYS) == sorted(kind.model_fields.keys() - later)


def test_a_later_field_is_stored_where_it_says_something() -> None:
    config = PriorConfig(prediction="tokens", vocab_size=300, stagger=1.0)
    document = config.document()
    assert document.keys() - set(PriorConfig.KEYS) == {"prediction", "vocab_size", "stagger"}
    assert PriorConfig.model_validate(document, strict=True) == config
    assert set(PriorConfig().document()) == set(PriorConfig.KEYS)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_field_says_what_it_is(kind: type[Shape]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    "wrong",
    [{"dim": "64"}, {"dim": True}, {"dim": 64.0}, {"layers": 10**400}, {"norm_eps": 10**400},
     {"norm_eps": float("inf")}, {"qk_bias": 1}, {"rope_dim": 13}, {"wings": 2}],
)  # fmt: skip
def test_a_config_of_another_type_or_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PriorConfig.model_validate(wrong, strict=True)


def test_a_whole_number_is_a_float_where_one_belongs() -> None:
    eps = PriorConfig.model_validate({"norm_eps": 1}, strict=True).norm_eps
    assert (eps, type(eps)) == (1.0, float)
