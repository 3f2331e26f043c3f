"""Settings explained: names, presets, and a settings file that means what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cola_cli.settings import TABLES, resolve
from cola_cli.settings.describe import sections, settings_file
from cola_cli.settings.resolve import PRESET_NAMES, PRESETS, known_names


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_is_listed_once_in_a_section_that_says_what_it_is(table: str) -> None:
    found = sections(table)
    names = [one.name for _, own in found.values() for one in own]
    assert sorted(names) == sorted(known_names(TABLES[table]))
    assert all(about for about, _ in found.values())


def test_a_section_or_one_setting_is_picked_by_its_whole_name() -> None:
    assert [one.name for _, own in sections("prior", "train.steps").values() for one in own] == [
        "train.steps"
    ]
    assert set(sections("prior", "joint")) == {"joint"}


def test_presets_are_named_by_size() -> None:
    assert sorted(PRESET_NAMES) == sorted(path.stem for path in PRESETS.glob("*.toml"))
    counts = [
        resolve(TABLES["prior"], "prior", preset=name).model.dim  # type: ignore[attr-defined]
        for name in PRESET_NAMES
    ]
    assert counts == sorted(counts)


@pytest.mark.parametrize("preset", [None, *PRESET_NAMES])
def test_a_written_settings_file_is_the_preset_and_its_comments_are_the_defaults(
    preset: str | None, tmp_path: Path
) -> None:
    file, everything = tmp_path / "c.toml", tmp_path / "all.toml"
    text = settings_file(preset)
    file.write_text(text)
    # with the comments in force, too; without what the preset sets
    given = re.sub(r"(?m)^\w+ = .*\n", "", text)
    everything.write_text(re.sub(r"(?m)^#(\w+ = (?!unset).*)", r"\1", given))
    for table, model in TABLES.items():
        assert resolve(model, table, config=file) == resolve(model, table, preset=preset)
        assert resolve(model, table, config=everything) == model()
