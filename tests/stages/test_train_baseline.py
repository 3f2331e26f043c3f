"""cola train ar and llada: matched, killed and resumed, in the prior's order, sampled, evaluated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import cola_cli
from cola_cli.artifacts import Artifact
from cola_cli.artifacts.kinds import Evaluation, Tokens
from cola_cli.artifacts.rows import artifact_rows
from cola_cli.corpus.sequences import Rows, Sequences
from cola_cli.families import FAMILIES, PRIOR
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.sample import model_fingerprint
from cola_cli.stages.tokenize import tokenize
from cola_cli.stages.train import train
from cola_cli.training.objectives.baselines import MaskedDiffusion, NextToken
from cola_cli.training.objectives.flow_matching import FlowMatching
from cola_cli.training.objectives.objective import Objective
from tests.conftest import CPU, Run, content
from tests.stages.conftest import OPTIM, TRAIN, made_up_text, prior_settings
from tests.stages.killing import assert_same_manifest, assert_same_metrics, kill_until_done

MODEL = {"layers": 2, "dim": 32, "ffn_dim": 64, "heads": 2, "head_dim": 16}
KINDS = ["autoregressive", "llada"]
COMMANDS = {"autoregressive": "ar", "llada": "llada"}


def baseline_settings(**train: object) -> BaselineSettings:
    return BaselineSettings.model_validate({"model": MODEL, "optim": OPTIM, "train": TRAIN | train})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again_the_baseline_is_the_same_to_the_byte(
    made: Path, tmp_path: Path, kind: str
) -> None:
    settings = baseline_settings(steps=150, checkpoint_every=7, validate_every=50)
    train(FAMILIES[kind], made / "tokens", tmp_path / "quiet", settings, CPU)
    command = ["train", COMMANDS[kind], str(made / "tokens"), "-o", str(tmp_path / "killed")]
    command += ["--device", "cpu"]
    for section, values in settings.model_dump(exclude_unset=True).items():
        for name, value in values.items():
            command += ["--set", f"{section}.{name}={value}"]
    kill_until_done(command, "matrix products", kills=4, span=0.6, seed=2)
    assert content(tmp_path / "killed") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "killed", tmp_path / "quiet")
    assert_same_manifest(tmp_path / "killed", tmp_path / "quiet")


def test_the_three_trainers_see_the_same_rows_in_the_same_order(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the digests of the tokens that reach each objective, over more than an epoch."""
    seen: dict[str, list[str]] = {}

    def watch(objective: type[Objective]) -> None:
        draw = objective.draw

        def watched(
            self: Objective, rows: Rows, randoms: object, step: int, validation: bool
        ) -> object:
            if not validation:
                digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in rows.tokens]
                seen.setdefault(objective.__name__, []).extend(digests)
            return draw(self, rows, randoms, step, validation)

        monkeypatch.setattr(objective, "draw", watched)

    for objective in (FlowMatching, NextToken, MaskedDiffusion):
        watch(objective)
    rows = Sequences(Tokens.open(made / "tokens"), "train").count
    length = {"steps": rows // 8 + 10, "batch_size": 8}
    for kind in KINDS:
        train(FAMILIES[kind], made / "tokens", tmp_path / kind, baseline_settings(**length), CPU)
    settings = prior_settings(**length)
    train(PRIOR, made / "latents", tmp_path / "prior", settings, CPU)
    prior, *baselines = (seen[o.__name__] for o in (FlowMatching, NextToken, MaskedDiffusion))
    assert len(prior) == 8 * (rows // 8 + 10)
    assert len(set(prior)) > rows // 2  # a few rows are of equal text
    assert baselines == [prior, prior]


def test_a_matched_baseline_has_the_priors_recipe_and_parameters(
    made: Path, tmp_path: Path, cola: Run
) -> None:
    train(PRIOR, made / "latents", tmp_path / "prior", prior_settings(), CPU)
    command = ["train", "ar", made / "tokens", "-o", "ar", "--match", "prior", "--dry-run"]
    shown = json.loads(cola(*command, "--json").stdout)
    assert shown["settings"]["train"]["batch_size"] == TRAIN["batch_size"]
    assert shown["settings"]["optim"]["lr"] == OPTIM["lr"]
    assert shown["settings"]["model"]["dim"] == 32
    layer = 4 * 32 * 32 + 3 * 32 * 128 + 2 * 32
    off = abs(shown["plan"]["core_parameters"] - shown["plan"]["matched_to"])
    assert off <= layer / 2 + 32
    assert not (tmp_path / "ar").exists()
    changed = cola(*command, "--json", "--set", "train.steps=7").stdout
    assert json.loads(changed)["settings"]["train"]["steps"] == 7
    wrong = cola("train", "ar", made / "tokens", "-o", "ar", "--match", made / "vae", expect=None)
    assert wrong.returncode != 0
    assert "prior" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_memorised_continuation_comes_back_exactly(tmp_path: Path, kind: str) -> None:
    (tmp_path / "corpus.txt").write_text(made_up_text(8, seed=3))
    cut = TokenizeSettings(vocab_size=280, seq_len=32, validation_fraction=0.2, seed=1, workers=1)
    tokenize([str(tmp_path / "corpus.txt")], tmp_path / "tokens", cut)
    settings = BaselineSettings.model_validate(
        {
            "model": MODEL | {"dim": 64, "head_dim": 32, "ffn_dim": 128},
            "optim": {"lr": 4e-3, "warmup_steps": 20},
            "train": {
                "steps": 400 if kind == "autoregressive" else 1200,
                "batch_size": 8,
                "log_every": 100,
                "validate_every": 1000,
            },
        }
    )
    train(FAMILIES[kind], tmp_path / "tokens", tmp_path / kind, settings, CPU)
    model = cola_cli.load_baseline(tmp_path / kind)
    rows = Sequences(Tokens.open(tmp_path / "tokens"), "train").read(0, 2)
    prompts = [row[:8].tolist() for row in rows.tokens]
    written = model.generate_ids(prompts, max_new_tokens=24, stop_ids=())
    assert [item.ids for item in written] == [row[8:].tolist() for row in rows.tokens]


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_is_sampled_and_evaluated_like_any_model(
    made: Path, tmp_path: Path, cola: Run, kind: str
) -> None:
    settings = baseline_settings(steps=3)
    train(FAMILIES[kind], made / "tokens", tmp_path / "model", settings, CPU)
    options = ["--prompt", "Anna sees", "--prompt", "Tom", "-n", 6]
    rows = [
        json.loads(line)
        for line in cola("sample", "model", *options, "--json").stdout.split("\n")[:-1]
    ]
    assert [row["prompt"] for row in rows] == ["Anna sees", "Tom"]
    cola("sample", "model", *options, "-o", "samples")
    manifest = Artifact.open(tmp_path / "samples", "samples").manifest
    assert manifest.identity.inputs["model"] == model_fingerprint(tmp_path / "model")
    plan = json.loads(cola("sample", "model", *options, "--dry-run", "--json").stdout)["plan"]
    assert plan["parameters"] == sum(
        p.numel() for p in cola_cli.load_baseline(tmp_path / "model").network.parameters()
    )
    data = Path(__file__).parents[2] / "data" / "eval" / "lambada.jsonl"
    cola(
        "eval", "run", "model", "--task", "lambada", "--data", data, "-o", "answers",
        "--set", "cut_prompts=true", "--set", "max_new_tokens=4",
    )  # fmt: skip
    assert Artifact.open(tmp_path / "answers", "evaluation").manifest.statistics["n"] > 0
    row = next(artifact_rows(Evaluation.open(tmp_path / "answers")))
    passes = None if kind == "autoregressive" else 4
    assert (row["steps"], row["guidance"], row["dtype"]) == (passes, None, "float32")
    assert "is a baseline" in cola("likelihood", "model", "--text", "Anna sees", expect=4).stderr


def test_what_is_no_model_is_refused(made: Path, cola: Run) -> None:
    shown = cola("sample", made / "tokens", "--prompt", "Anna", "-o", "out", expect=4)
    assert "is an artifact of kind tokens, but a model is needed here" in shown.stderr
