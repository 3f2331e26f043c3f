"""`cola likelihood` and `cola diagnose vae` as commands, on real artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cola_cli.artifacts.kinds import Likelihoods, LikelihoodsRow, LikelihoodsStatistics
from cola_cli.artifacts.rows import artifact_rows
from tests.conftest import Run
from tests.stages.test_sample import model  # noqa: F401  (a fixture)

QUICK = ("--steps", 2, "--quiet", "--json")


@pytest.fixture
def prior(model: Path) -> Path:  # noqa: F811
    return model


def test_a_text_gets_bounds_and_terms_of_every_token(cola: Run, prior: Path) -> None:
    exact = ("--divergence", "exact", "--draws", 3)
    found = json.loads(cola("likelihood", prior, "--text", "the cat sat", *exact, *QUICK).stdout)
    (row,) = found["scores"]
    assert found["tokens"] == row["tokens"] == len(row["latents"])
    assert found["iwae"] >= found["elbo"]
    assert "".join(latent["text"] for latent in row["latents"]) == "the cat sat"
    again = cola("likelihood", prior, "--text", "the cat sat", *exact, *QUICK).stdout
    assert json.loads(again) == found


def test_without_exact_densities_there_is_no_iwae_and_it_is_said(cola: Run, prior: Path) -> None:
    arguments = ("likelihood", prior, "--text", "the cat sat", "--draws", 3, "--steps", 2)
    found = json.loads(cola(*arguments, "--json", "--quiet").stdout)
    assert found["iwae"] is found["perplexity_iwae"] is found["scores"][0]["iwae"] is None
    result = cola(*arguments)
    assert "give --divergence exact" in result.stderr
    assert "iwae" not in result.stdout
    exact = json.loads(cola(*arguments, "--divergence", "exact", "--json").stdout)
    assert found["elbo"] != exact["elbo"]
    assert exact["iwae"] >= exact["elbo"]


def test_budgets_that_nobody_can_wait_for_are_refused(cola: Run, prior: Path) -> None:
    text = ("likelihood", prior, "--text", "the cat sat")
    assert "--draws" in cola(*text, "--draws", 1_000_000, expect=2).stderr
    assert "--steps" in cola(*text, "--steps", 1_000_000_000, expect=2).stderr


def test_a_file_of_texts_and_a_response_are_scored(cola: Run, tmp_path: Path, prior: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "the cat"}\n{"text": "a dog ran"}\n')
    found = json.loads(cola("likelihood", prior, "--file", "t.jsonl", *QUICK).stdout)
    assert found["texts"] == 2
    assert found["elbo"] == pytest.approx(sum(row["elbo"] for row in found["scores"]))
    answered = cola("likelihood", prior, "--prefix", "the cat", "--text", " sat", *QUICK)
    assert "elbo" in json.loads(answered.stdout)["scores"][0]


def test_an_artifact_of_likelihoods_has_the_scores_of_the_command(
    cola: Run, tmp_path: Path, prior: Path
) -> None:
    lines = [json.dumps({"text": text}) for text in ("the cat", "a dog ran", "the cat sat")]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    command = ("likelihood", prior, "--file", "t.jsonl", "--device", "cpu", *QUICK)
    shown = json.loads(cola(*command).stdout)
    said = json.loads(cola(*command, "-o", "out", "--set", "items_per_part=2").stdout)
    made = Likelihoods.open(tmp_path / "out")
    scores = shown.pop("scores")
    assert {name: said[name] for name in shown} == pytest.approx(shown)
    assert made.statistics.model_dump() == pytest.approx(shown)
    assert list(made.manifest.statistics) == list(LikelihoodsStatistics.model_fields)
    rows = list(artifact_rows(made))
    assert [row.pop("text") for row in rows] == ["the cat", "a dog ran", "the cat sat"]
    assert rows == scores
    assert list(next(artifact_rows(made))) == list(LikelihoodsRow.model_fields)
    assert len(made.parts) == 2
    assert "up to date" in cola(*command[:-2], "-o", "out", "--set", "items_per_part=2").stdout
    other = ("-o", "out", "--seed", 1)
    assert "seed: 0 -> 1" in cola(*command[:-1], *other, expect=3).stderr
    assert (
        "need --file and -o" in cola("likelihood", prior, "--text", "a", "-o", "b", expect=2).stderr
    )


def test_wrong_uses_of_score_are_named(cola: Run, tmp_path: Path, prior: Path) -> None:
    assert "either --text" in cola("likelihood", prior, expect=2).stderr
    assert (
        "'exact'" in cola("likelihood", prior, "--text", "a", "--divergence", "x", expect=2).stderr
    )
    for empty in (("--text", ""), ("--text", "a", "--prefix", "")):
        said = cola("likelihood", prior, *empty, expect=2).stderr
        assert f"{empty[-2]} is empty" in said
    (tmp_path / "t.jsonl").write_text('{"body": "the cat"}\n')
    result = cola("likelihood", prior, "--file", "t.jsonl", *QUICK, expect=4)
    assert "t.jsonl, line 1 has no field 'text'" in result.stderr
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "the cat sat " * 100}) + "\n")
    result = cola("likelihood", prior, "--file", "t.jsonl", *QUICK, expect=4)
    assert "t.jsonl, line 1, has" in result.stderr
    assert "trained on sequences of 64" in result.stderr


def test_a_vae_is_diagnosed_with_a_plot(cola: Run, tmp_path: Path, made: Path) -> None:
    arguments = ("diagnose", "vae", made / "vae", "--tokens", made / "tokens")
    found = json.loads(cola(*arguments, "--plot", "noise.svg", "--json").stdout)
    assert 0 < found["accuracy"] <= 1
    assert len(found["kl_per_channel"]) == 8
    assert (tmp_path / "noise.svg").read_text().startswith("<svg")
    assert "active channels" in cola(*arguments).stdout


def test_an_artifact_without_a_vae_cannot_be_diagnosed(cola: Run, made: Path) -> None:
    tokens = made / "tokens"
    assert "has no VAE" in cola("diagnose", "vae", tokens, "--tokens", tokens, expect=4).stderr
