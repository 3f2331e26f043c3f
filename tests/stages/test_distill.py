"""cola distill: a student is a prior like others, which says what it was made from and for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import cola_cli
from cola_cli.artifacts import Artifact
from cola_cli.errors import InputError, UsageError
from cola_cli.families import CHAIN, DISTILLED, PRIOR, TEXT_VAE
from cola_cli.settings.distill import DistillSettings
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.likelihood import open_scorer
from cola_cli.stages.train import derived_family, plan_training, train
from cola_cli.weights.artifact import load_prior
from cola_cli.weights.configs import prior_config
from tests.conftest import CPU, Run, content
from tests.stages.conftest import (
    distill_settings,
    prior_settings,
    vae_settings,
)
from tests.stages.killing import assert_same_manifest, assert_same_metrics, kill_until_done

SAMPLED = ["--max-new-tokens", "12", "--device", "cpu", "--json", "--quiet"]


@pytest.fixture(scope="module")
def teachers(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Priors of a few hundred steps: `tokens`, staggered with a token head, and `velocity`."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, model in {
        "tokens": {
            "prediction": "tokens",
            "stagger": 1.0,
            "evidence": True,
            "causal_history": True,
        },
        "velocity": {},
    }.items():
        values = prior_settings(steps=150, validate_every=150, batch_size=8).model_dump()
        values["model"] |= model
        values["sampling"] = {"guidance": 2.0, "steps": 8, "temperature": 0.5}
        train(PRIOR, made / "latents", folder / name, PriorSettings.model_validate(values), CPU)
    return folder


@pytest.fixture(scope="module")
def student(made: Path, teachers: Path) -> Path:
    """A student of two passes of `tokens`."""
    settings = distill_settings(passes=2, steps=30)
    family = derived_family(DISTILLED, teachers / "tokens", made / "latents")
    train(family, made / "latents", teachers / "student", settings, CPU)
    return teachers / "student"


def test_a_student_says_what_it_was_made_from_and_for(teachers: Path, student: Path) -> None:
    manifest = Artifact.open(student, "prior").manifest
    teacher = Artifact.open(teachers / "tokens").manifest
    assert manifest.identity.stage == "distill"
    assert manifest.identity.inputs["prior"] == teacher.fingerprint
    assert manifest.identity.settings["passes"] == 2
    assert manifest.identity.settings["teacher"]["guidance"] == 2.0
    assert manifest.settings["sampling"]["steps"] == 2
    assert manifest.settings["sampling"]["guidance"] == 1.0
    assert prior_config(Artifact.open(student)).passes == 2


def test_the_command_takes_over_how_the_teacher_is_sampled(
    made: Path, teachers: Path, tmp_path: Path, cola: Run
) -> None:
    command = ["distill", teachers / "tokens", made / "latents", "-o", tmp_path / "out"]
    command += ["--passes", 4, "--set", "train.steps=2", "--set", "train.batch_size=2"]
    command += ["--set", "train.validation_sequences=2", "--device", "cpu", "--json", "--quiet"]
    plan = json.loads(cola(*command, "--dry-run").stdout)
    teacher = plan["settings"]["teacher"]
    assert (teacher["steps"], teacher["guidance"], teacher["head_temperature"]) == (8, 2.0, 1.0)
    cola(*command)
    settings = Artifact.open(tmp_path / "out", "prior").manifest.settings
    stored = {name: value for name, value in settings["sampling"].items() if value is not None}
    assert stored == {"steps": 4, "guidance": 1.0, "temperature": 0.5}
    assert json.loads(cola(*command).stdout)["changed"] is False
    assert "cola sample" in cola("status", tmp_path, "--json").stdout


def test_it_is_sampled_and_opened_like_any_prior(student: Path, cola: Run) -> None:
    written = cola("sample", student, "--prompt", "Anna sees", *SAMPLED).stdout
    stated = cola("sample", student, "--prompt", "Anna sees", "--steps", 2, *SAMPLED).stdout
    assert written == stated
    model = cola_cli.load(student)
    alone = [model.generate([text], max_new_tokens=12)[0].ids for text in ("Anna", "Tom likes")]
    # the noise of a prompt belongs to its place: the first is compared
    together = model.generate(["Anna", "Tom likes"], max_new_tokens=12)
    assert together[0].ids == alone[0]


def test_guidance_asked_of_a_student_is_an_error(student: Path, cola: Run) -> None:
    result = cola("sample", student, "--prompt", "Anna", "--guidance", 3, *SAMPLED, expect=2)
    assert "distilled for 2 passes" in result.stderr
    with pytest.raises(UsageError, match="cannot be given guidance 3"):
        cola_cli.load(student).generate(["Anna"], max_new_tokens=8, guidance=3.0)


def test_a_student_has_no_likelihood(student: Path) -> None:
    with pytest.raises(InputError, match="have no likelihood"):
        open_scorer(student, "cpu")


def test_a_student_of_another_latent_space_is_an_error(
    made: Path, teachers: Path, tmp_path: Path, cola: Run
) -> None:
    train(TEXT_VAE, made / "tokens", tmp_path / "vae", vae_settings(seed=1, steps=2), CPU)
    other = tmp_path / "latents"
    encode(made / "tokens", tmp_path / "vae", other, EncodeSettings(), CPU)
    result = cola("distill", teachers / "tokens", other, "-o", tmp_path / "out", expect=4)
    assert "another latent space" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("passes", [1, 2])
def test_a_teacher_may_be_rounded(
    made: Path, teachers: Path, tmp_path: Path, cola: Run, passes: int
) -> None:
    rounded = tmp_path / "rounded"
    cola("import", teachers / "tokens", "-o", rounded, "--dtype", "bfloat16")
    command = ["distill", rounded, made / "latents", "-o", tmp_path / "out", "--passes", passes]
    command += ["--set", "train.steps=2", "--set", "teacher.guidance=1", "--device", "cpu"]
    cola(*command)
    assert {
        weight.dtype for weight in load_prior(Artifact.open(tmp_path / "out")).parameters()
    } == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": {"steps": 10}, "passes": 4}, "multiple of passes"),
        ({"passes": 2, "sampling": {"steps": 4}}, "sampling.steps of a student is 2"),
        ({"sampling": {"guidance": 3.0}}, "sampling.guidance of a student is 1.0"),
        ({"passes": 0}, "greater than or equal to 1"),
        ({"teacher": {"guidance_interval": (0.8, 0.2)}}, "low <= high"),
        ({"sampling": {"settle": -1}}, "greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit_together_are_errors(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DistillSettings.model_validate(settings)


def test_guidance_of_a_teacher_that_is_a_student_is_an_error(
    made: Path, student: Path, tmp_path: Path
) -> None:
    family = derived_family(DISTILLED, student, made / "latents")
    settings = distill_settings(passes=1, teacher={"steps": 2, "guidance": 2.0})
    with pytest.raises(UsageError, match="cannot be given guidance 2"):
        train(family, made / "latents", tmp_path / "out", settings, CPU)
    settings = distill_settings(passes=1, steps=2, teacher={"steps": 2, "guidance": 1.0})
    train(family, made / "latents", tmp_path / "out", settings, CPU)
    assert prior_config(Artifact.open(tmp_path / "out")).passes == 1


def test_of_one_pass_it_has_a_chain_and_the_teachers_temperature_within(
    made: Path, teachers: Path, tmp_path: Path, cola: Run
) -> None:
    command = ["distill", teachers / "tokens", made / "latents", "--passes", 1, "--device", "cpu"]
    command += ["--set", "train.steps=20", "--set", "teacher.guidance=1", "--json", "--quiet"]
    for name, temperature in (("as it is", 1.0), ("cool", 0.5)):
        setting = f"teacher.head_temperature={temperature}"
        cola(*command, "--set", setting, "-o", tmp_path / name)
    cool = prior_config(Artifact.open(tmp_path / "cool"))
    assert (cool.passes, cool.chain) == (1, CHAIN * cool.dim)
    written = cola("sample", tmp_path / "cool", "--prompt", "Anna sees", *SAMPLED).stdout
    flag = ["--set", "head_temperature=0.5"]
    other = cola("sample", tmp_path / "as it is", "--prompt", "Anna sees", *flag, *SAMPLED).stdout
    assert json.loads(written)["text"] == json.loads(other)["text"]
    refused = cola("distill", tmp_path / "cool", *command[2:], "-o", tmp_path / "x", expect=2)
    assert "is itself a student with a chain" in refused.stderr
    guided = [*command, "--set", "teacher.guidance=2", "-o", tmp_path / "x"]
    assert "cannot have guidance 2" in cola(*guided, expect=2).stderr


def test_a_prior_trained_jointly_with_its_vae_is_refused(
    made: Path, tmp_path: Path, cola: Run
) -> None:
    train(PRIOR, made / "latents", tmp_path / "joint", prior_settings("joint", steps=2), CPU)
    result = cola("distill", tmp_path / "joint", made / "latents", "-o", tmp_path / "x", expect=4)
    assert "another latent space" in result.stderr
    assert "its VAE frozen" in result.stderr


def test_only_what_the_released_layout_can_hold_is_exported(
    made: Path, teachers: Path, student: Path, tmp_path: Path, cola: Run
) -> None:
    assert (
        "no place for a prior with causal_history = True, evidence = True, prediction = tokens"
        in cola("export", student, "-o", tmp_path / "a", expect=4).stderr
    )
    family = derived_family(DISTILLED, teachers / "velocity", made / "latents")
    train(family, made / "latents", tmp_path / "out", distill_settings(passes=2, steps=2), CPU)
    cola("export", tmp_path / "out", "-o", tmp_path / "b")
    ours = cola_cli.load(tmp_path / "out").generate(["Anna sees"], max_new_tokens=12)
    theirs = cola_cli.load(tmp_path / "b").generate(
        ["Anna sees"], max_new_tokens=12, steps=2, guidance=1.0
    )
    assert ours[0].ids == theirs[0].ids


@pytest.mark.parametrize(("teacher", "passes"), [("tokens", 2), ("velocity", 1)])
def test_a_student_comes_nearer_to_its_teacher_than_the_teacher_in_as_few_passes(
    made: Path, teachers: Path, tmp_path: Path, teacher: str, passes: int
) -> None:
    settings = distill_settings(passes=passes, steps=80, validate_every=80)
    family = derived_family(DISTILLED, teachers / teacher, made / "latents")
    found = train(family, made / "latents", tmp_path / "out", settings, CPU).statistics
    assert found["validation_gap"] < 0.8 * found["validation_gap_of_teacher"]


@pytest.mark.slow
def test_killed_again_and_again_the_student_is_the_same_to_the_byte(
    made: Path, teachers: Path, tmp_path: Path
) -> None:
    settings = distill_settings(passes=2, steps=60, checkpoint_every=7, validate_every=30)
    values = settings.model_dump(exclude_unset=True) | {"sampling": {"temperature": 0.5}}
    settings = DistillSettings.model_validate(values)  # as is stored with the teacher
    family = derived_family(DISTILLED, teachers / "tokens", made / "latents")
    train(family, made / "latents", tmp_path / "quiet", settings, CPU)
    command = ["distill", str(teachers / "tokens"), str(made / "latents")]
    command += ["-o", str(tmp_path / "killed"), "--device", "cpu", "--passes", "2"]
    command += [
        f"--set={section}.{name}={value}"
        for section in ("optim", "train")
        for name, value in getattr(settings, section).model_dump(exclude_unset=True).items()
    ]
    kill_until_done(command, "matrix products", kills=4, span=0.8, seed=3)
    assert content(tmp_path / "killed") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "killed", tmp_path / "quiet")
    assert_same_manifest(tmp_path / "killed", tmp_path / "quiet")


def test_a_plan_counts_teacher_and_student(made: Path, teachers: Path) -> None:
    family = derived_family(DISTILLED, teachers / "tokens", made / "latents")
    plans = {
        (passes, guidance): plan_training(
            family,
            made / "latents",
            distill_settings(passes=passes, teacher={"steps": 8, "guidance": guidance}),
        )["flops_per_step"]
        for passes, guidance in ((1, 1.0), (4, 1.0), (2, 2.0), (4, 2.0))
    }
    # with a chain a step takes one of the passes, and none of the teacher's
    assert plans[1, 1.0] == plans[4, 1.0] < plans[2, 2.0] < plans[4, 2.0]
