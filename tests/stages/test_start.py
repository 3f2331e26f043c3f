"""cola train ... --from: a training that begins with the weights of another, or of a released checkpoint."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import cola_cli
from cola_cli.artifacts import Artifact
from cola_cli.artifacts.artifact import METRICS
from cola_cli.artifacts.kinds import Latents
from cola_cli.corpus.sequences import Sequences
from cola_cli.errors import InputError, UsageError
from cola_cli.families import AUTOREGRESSIVE, LLADA, PRIOR, TEXT_VAE, Family
from cola_cli.machine.processes import ALONE
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.import_checkpoint import import_checkpoint
from cola_cli.stages.start import Start
from cola_cli.stages.train import train
from cola_cli.training.objectives.flow_matching import FlowMatching
from cola_cli.training.shares import Workers
from cola_cli.training.validation import Validation
from tests import golden
from tests.conftest import CPU, Run, content
from tests.stages.conftest import (
    OPTIM,
    TRAIN,
    assignments,
    prior_settings,
    vae_settings,
)
from tests.stages.killing import assert_same_manifest, assert_same_metrics, kill_until_done

BASELINE = {"dim": 32, "ffn_dim": 64, "heads": 2, "head_dim": 16, "layers": 2}


def baseline_settings(**changes: object) -> BaselineSettings:
    """A transformer of a few thousand weights, trained for a moment."""
    values = {"model": BASELINE, "optim": OPTIM, "train": TRAIN | changes}
    return BaselineSettings.model_validate(values)


def validated(artifact: Path, name: str) -> list[float]:
    """A validation metric of a training, from its first validation to its last one."""
    column = pq.read_table(artifact / METRICS)[name].to_pylist()
    return [value for value in column if value is not None]


def standing_still(settings: Any) -> Any:
    """The same training with steps too small to change what the model gives."""
    return settings.model_copy(
        update={
            "optim": settings.optim.model_copy(update={"lr": 1e-9, "lr_start": 0.0, "lr_end": 0.0})
        }
    )


@pytest.mark.parametrize(
    ("family", "settings", "metric"),
    [
        (TEXT_VAE, vae_settings(), "validation_reconstruction"),
        (PRIOR, prior_settings(), "validation_flow"),
        (PRIOR, prior_settings("joint"), "validation_flow"),
        (AUTOREGRESSIVE, baseline_settings(), "validation_loss"),
        (LLADA, baseline_settings(), "validation_loss"),
    ],
    ids=["vae", "prior", "joint", "ar", "llada"],
)
def test_a_training_goes_on_from_what_another_one_learnt(
    made: Path, tmp_path: Path, family: Family, settings: Any, metric: str
) -> None:
    source = made / family.reads
    train(family, source, tmp_path / "first", settings, CPU)
    start = Start(tmp_path / "first", family)
    joint = settings == prior_settings("joint")
    if joint:  # it moved its VAE
        source = tmp_path / "latents"
        encode(made / "tokens", tmp_path / "first", source, EncodeSettings(), CPU)
    train(family, source, tmp_path / "second", standing_still(settings), CPU, start)
    first, second = (validated(tmp_path / name, metric) for name in ("first", "second"))
    # a joint training measures itself against the variance of its latents, which moved
    assert second[0] == pytest.approx(first[-1], rel=0.05 if joint else 1e-4)
    assert abs(first[0] - first[-1]) > 3 * abs(second[0] - first[-1])
    inputs = Artifact.open(tmp_path / "second").manifest.identity.inputs
    assert inputs["start"] == Artifact.open(tmp_path / "first").manifest.fingerprint


def test_its_sizes_are_those_of_its_start_unless_told_otherwise(
    cola: Run, made: Path, tmp_path: Path
) -> None:
    stored = PriorSettings.model_validate(
        prior_settings().model_dump() | {"sampling": {"guidance": 2.0}}
    )
    train(PRIOR, made / "latents", tmp_path / "first", stored, CPU)
    train_prior = ["train", "prior", str(made / "latents"), "-o", "second", "--device", "cpu"]
    more = ["--from", "first", "--set", "train.steps=2", "--set", "train.batch_size=4"]
    assert cola(*train_prior, *more).returncode == 0
    sampling = Artifact.open(tmp_path / "second").manifest.settings["sampling"]
    assert sampling["guidance"] == 2.0
    listed = cola("status", ".", "--json").stdout
    assert '"second"' in listed
    assert "stale" not in listed
    wider = cola(*train_prior, *more, "--set", "model.dim=64", "--overwrite", expect=4)
    assert re.search(r"first: the tensor \S+ has shape \(.*\) instead of \(.*\)", wider.stderr)
    deeper = cola(*train_prior, *more, "--set", "model.layers=3", "--overwrite", expect=4)
    assert re.search(r"first: the tensor blocks\.2\.\S+ is missing", deeper.stderr)
    shallower = cola(*train_prior, *more, "--set", "model.layers=1", "--overwrite", expect=4)
    assert re.search(r"first: the tensor blocks\.1\.\S+ is not part of this", shallower.stderr)
    assert cola("verify", "second").returncode == 0  # kept through the three refusals


def test_a_start_that_is_none_is_refused(made: Path, tmp_path: Path) -> None:
    train(AUTOREGRESSIVE, made / "tokens", tmp_path / "ar", baseline_settings(), CPU)
    with pytest.raises(InputError, match="kind autoregressive, but one of kind llada"):
        Start(tmp_path / "ar", LLADA)
    with pytest.raises(InputError, match="which holds no Text VAE"):
        Start(tmp_path / "ar", TEXT_VAE)
    with pytest.raises(InputError, match="is not an artifact"):
        Start(golden.HERE, AUTOREGRESSIVE)
    with pytest.raises(InputError, match="does not exist"):
        Start(tmp_path / "nowhere", PRIOR)


def test_a_prior_of_another_latent_space_is_refused(made: Path, tmp_path: Path) -> None:
    train(TEXT_VAE, made / "tokens", tmp_path / "vae", vae_settings(seed=67), CPU)
    encode(made / "tokens", tmp_path / "vae", tmp_path / "latents", EncodeSettings(), CPU)
    train(PRIOR, tmp_path / "latents", tmp_path / "first", prior_settings(), CPU)
    start = Start(tmp_path / "first", PRIOR)
    with pytest.raises(InputError, match="uses another latent space"):
        train(PRIOR, made / "latents", tmp_path / "second", prior_settings(), CPU, start)
    assert not (tmp_path / "second").exists()


def test_the_output_is_not_the_start(made: Path, tmp_path: Path) -> None:
    train(PRIOR, made / "latents", tmp_path / "first", prior_settings(), CPU)
    before = content(tmp_path / "first")
    start = Start(tmp_path / "first", PRIOR)
    with pytest.raises(UsageError):
        train(PRIOR, made / "latents", tmp_path / "first", prior_settings(), CPU, start)
    assert content(tmp_path / "first") == before


@pytest.mark.parametrize("rounded", [False, True])
def test_the_released_layout_is_continued_with_the_loss_that_scoring_it_gives(
    made: Path, tmp_path: Path, rounded: bool
) -> None:
    released = tmp_path / "released"
    shutil.copytree(golden.HERE / "cola_dlm", released / "cola_dlm")
    shutil.copy(made / "tokens/tokenizer.json", released)
    imported = tmp_path / "imported"
    import_checkpoint(released, imported, "bfloat16" if rounded else "stored")
    encode(made / "tokens", imported, tmp_path / "latents", EncodeSettings(), CPU)
    model = cola_cli.load(imported)
    settings = standing_still(prior_settings(steps=2))
    start = Start(released, PRIOR)
    chosen = settings.model_copy(
        update={"model": type(settings.model).model_validate(start.settings()["model"])}
    )
    train(PRIOR, tmp_path / "latents", tmp_path / "tuned", chosen, CPU, start)

    latents = Latents.open(tmp_path / "latents")
    found = validated(tmp_path / "tuned", "validation_flow")[0]
    length = latents.statistics.seq_len
    objective = FlowMatching(model.prior.float(), chosen, np.ones(8), length, model.vae.config)
    sequences = Sequences(latents, "validation")
    validation = Validation(objective, sequences, chosen.train, ALONE, 4, Workers(0))
    sums = validation.sums(contextlib.nullcontext, lambda: 0)
    expected = validation.metrics(sums, 0)["flow"]
    assert found == pytest.approx(expected, rel=1e-2 if rounded else 1e-5)


@pytest.mark.slow
def test_killed_again_and_again_it_is_the_same_to_the_byte(made: Path, tmp_path: Path) -> None:
    settings = prior_settings(steps=60, checkpoint_every=7, validate_every=50)
    train(PRIOR, made / "latents", tmp_path / "first", settings, CPU)
    start = Start(tmp_path / "first", PRIOR)
    train(PRIOR, made / "latents", tmp_path / "quiet", settings, CPU, start)
    command = ["train", "prior", str(made / "latents"), "-o", str(tmp_path / "killed")]
    command += ["--from", str(tmp_path / "first"), "--device", "cpu", *assignments(settings)]
    kill_until_done(command, "matrix products", kills=4, span=0.8, seed=5)
    assert content(tmp_path / "killed") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "killed", tmp_path / "quiet")
    assert_same_manifest(tmp_path / "killed", tmp_path / "quiet")
