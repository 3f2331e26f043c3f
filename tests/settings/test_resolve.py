"""Settings come from preset, file, environment and flags; unknown ones are errors."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cola_cli.errors import UsageError
from cola_cli.settings import TABLES, Settings, resolve, result_settings, runtime, to_toml


class Train(Settings):
    steps: int = 10
    rate: float = 0.5
    name: str = "a"
    workers: int = runtime(2, ge=1)


class Example(Settings):
    train: Train = Train()
    seed: int = 1


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text("[example]\nseed = 5\n[example.train]\nsteps = 20\nrate = 0.1\n")
    return path


def test_later_sources_win(config: Path) -> None:
    settings = resolve(
        Example,
        "example",
        config=config,
        environ={"COLA_EXAMPLE__TRAIN__STEPS": "30", "COLA_VAE__SEED": "7", "COLA_THREADS": "1"},
        assignments=["train.rate=1e-3"],
        flags={"seed": 9, "train.name": None},
    )
    assert settings == Example(train=Train(steps=30, rate=1e-3), seed=9)


def test_a_configuration_file_wins_over_the_preset(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cola_cli.settings import resolve as function

    (tmp_path / "mini.toml").write_text('[example.train]\nsteps = 1\nname = "preset"\n')
    monkeypatch.setitem(function.__globals__, "PRESETS", tmp_path)
    settings = resolve(Example, "example", preset="mini", config=config)
    assert (settings.train.steps, settings.train.name) == (20, "preset")


@pytest.mark.parametrize(
    ("assignment", "suggestion"),
    [("train.step=3", "train.steps"), ("sed=3", "seed"), ("steps=3", "train.steps")],
)
def test_an_unknown_setting_suggests_the_nearest(assignment: str, suggestion: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(Example, "example", assignments=[assignment])
    assert caught.value.remedy == f"Did you mean {suggestion}?"
    assert caught.value.exit_code == 2


def test_an_unknown_variable_or_preset_is_an_error() -> None:
    with pytest.raises(UsageError, match="COLA_EXAMPLE__TRAIN__STEP"):
        resolve(Example, "example", environ={"COLA_EXAMPLE__TRAIN__STEP": "1"})
    with pytest.raises(UsageError, match="no preset 'tinny'"):
        resolve(Example, "example", preset="tinny")


def test_an_unknown_table_is_an_error_and_not_settings_without_effect(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"COLA_PRIR__SEED: .* 'prir'") as caught:
        resolve(Example, "example", environ={"COLA_PRIR__SEED": "1"})
    assert caught.value.remedy == "Did you mean prior?"
    (tmp_path / "c.toml").write_text("[vea.train]\nsteps = 3\n[prior]\n")
    with pytest.raises(UsageError, match=r"c\.toml: .* 'vea'") as caught:
        resolve(Example, "example", config=tmp_path / "c.toml")
    assert caught.value.remedy == "Did you mean vae?"


def test_an_impossible_value_names_setting_value_and_source() -> None:
    with pytest.raises(UsageError, match=r"--set: setting train\.steps = 'many'"):
        resolve(Example, "example", assignments=["train.steps=many"])


@pytest.mark.parametrize(
    ("table", "assignment"),
    [("vae", "train.steps=true"), ("vae", "model.dim=true"), ("prior", "optim.lr=false"),
     ("sample", "grid=[true, 0]"), ("prior", "data.block_curriculum=[[2, true]]"),
     ("vae", "optim.name=true")],
)  # fmt: skip
def test_true_is_not_a_number(table: str, assignment: str) -> None:
    with pytest.raises(UsageError, match=r"true and false are not numbers"):
        resolve(TABLES[table], table, assignments=[assignment])


def test_an_impossible_combination_or_entry_names_its_table_or_setting() -> None:
    with pytest.raises(UsageError, match=r"--set: prior\.model: rope_dim 13 must be even"):
        resolve(TABLES["prior"], "prior", assignments=["model.rope_dim=13"])
    with pytest.raises(UsageError, match=r"--set: setting guidance_interval = \[0, 'x'\] is not"):
        resolve(TABLES["sample"], "sample", assignments=["guidance_interval=[0, 'x']"])


def test_settings_that_do_not_change_the_result_stay_out_of_the_identity() -> None:
    assert result_settings(Example()) == {
        "train": {"steps": 10, "rate": 0.5, "name": "a"},
        "seed": 1,
    }


def test_resolved_settings_written_as_toml_read_back_the_same(tmp_path: Path) -> None:
    settings = resolve(Example, "example", assignments=['train.name="q\\"uote"', "train.rate=3e-5"])
    text = to_toml("example", settings)
    assert tomllib.loads(text)["example"]["train"]["rate"] == 3e-5
    (tmp_path / "c.toml").write_text(text)
    assert resolve(Example, "example", config=tmp_path / "c.toml") == settings


def test_a_settings_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[example\n")
    with pytest.raises(UsageError, match=r"c\.toml is not valid TOML"):
        resolve(Example, "example", config=tmp_path / "c.toml")
    with pytest.raises(UsageError, match=r"missing\.toml cannot be read"):
        resolve(Example, "example", config=tmp_path / "missing.toml")


@pytest.mark.parametrize("table", TABLES)
def test_a_whole_number_that_libraries_cannot_hold_is_named(table: str) -> None:
    def whole(model: Any, above: str = "") -> Iterator[str]:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                yield from whole(field.annotation, f"{above}{name}.")
            elif field.annotation in (int, int | None):
                yield above + name

    names = list(whole(TABLES[table]))
    assert names
    for name in names:
        with pytest.raises(UsageError, match=name.rpartition(".")[2]):
            resolve(TABLES[table], table, "tiny", flags={name: 1 << 63})


def test_a_number_that_python_does_not_write_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f"[tokenize]\nseed = 0x{'f' * 5000}\n")
    with pytest.raises(UsageError, match="seed = a number of thousands of digits is not possible"):
        resolve(TABLES["tokenize"], "tokenize", config=tmp_path / "c.toml")


def test_a_value_that_is_not_possible_is_refused_in_plain_words() -> None:
    with pytest.raises(UsageError, match=r"steps = 0 .* \(it must be greater than or equal to 1\)"):
        resolve(TABLES["sample"], "sample", flags={"steps": 0})
