"""The pipelines of studies, joint training and baselines in miniature, as real processes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TypeVar

import pytest

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.families import PRIOR, TEXT_VAE
from cola_cli.sampling.prompts import read_prompts
from cola_cli.settings import Settings, resolve
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.sample import SampleSettings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.settings.vae import VAESettings
from cola_cli.stages.encode import encode
from cola_cli.stages.run import Run
from cola_cli.stages.sample import sample_to_artifact
from cola_cli.stages.tokenize import tokenize
from cola_cli.stages.train import train
from cola_cli.studies.plan import plan_study
from cola_cli.studies.settings import read_study
from tests.pipelines.conftest import cola_script
from tests.pipelines.test_quickstart import SAMPLE
from tests.pipelines.test_torchrun import PIPELINES, SETTINGS
from tests.stages.conftest import made_up_text

STUDIES = PIPELINES / "studies"
SettingsT = TypeVar("SettingsT", bound=Settings)
NAMES = ("scaling", "rq1", "rq2", "rq3", "rq4")


def environment(folder: Path, **variables: object) -> dict[str, str]:
    command = cola_script(folder)
    own = {"COLA": command, "PYTHONPATH": PIPELINES.parent, "OMP_NUM_THREADS": 1}
    own["CUDA_VISIBLE_DEVICES"] = ""
    return os.environ | {name: str(value) for name, value in (own | variables).items()}


def documents(folder: Path) -> Path:
    """Sentences that end in words, nine to a document."""
    lines = made_up_text(450).replace(".", " again.").split("\n\n")
    file = folder / "corpus.txt"
    file.write_text("\n\n".join("\n".join(lines[at : at + 9]) for at in range(0, 450, 9)))
    return file


def bash(script: str, *arguments: object, env: dict[str, str]) -> str:
    result = subprocess.run(
        ["bash", str(PIPELINES / script), *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_a_study_in_miniature_ends_in_a_table_and_a_chart(tmp_path: Path, name: str) -> None:
    corpus = documents(tmp_path)
    variables = environment(tmp_path, CORPUS=corpus, SETTINGS=STUDIES / "miniature.toml")
    run = tmp_path / "run"
    shown = bash("study.sh", name, run, env=variables)
    study = read_study(STUDIES / f"{name}.toml", STUDIES / "miniature.toml", [str(corpus)])
    runs = plan_study(study, run)
    assert shown.count(str(run / runs[0].trained.path.name)) >= 1
    for line in study.sweeps[0].lines:
        assert f"\n{line.name}\t" in shown
    assert "\nreal text\t" in shown
    assert (run / "scaling.svg").read_text().startswith("<svg")
    assert all(step.done for one in runs for step in one.steps)
    assert bash("study.sh", name, run, env=variables | {"COMMANDS": "1"}) == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_possible_at_its_real_size(name: str, tmp_path: Path) -> None:
    study = read_study(STUDIES / f"{name}.toml")
    runs = plan_study(study, tmp_path)
    assert len({(run.sweep, run.line, run.point, run.seed) for run in runs}) == len(runs)
    for run in runs:
        assert run.x is not None or run.sweep == ""
        assert run.compute.flops > 0
        latents = run.trained.inputs.get("latents")
        if latents is not None:
            length = latents.inputs["tokens"].settings.seq_len
            assert length % run.trained.settings.model.block_size == 0
    matched = [run for run in runs if "match" in run.trained.inputs]
    for run in matched:
        (prior,) = (
            other
            for other in runs
            if (other.point, other.seed) == (run.point, run.seed) and other.line == "Cola DLM"
        )
        assert run.compute.parameters == pytest.approx(prior.compute.parameters, rel=0.06)
        assert run.compute.tokens == prior.compute.tokens


def test_the_scaling_study_matches_parameters_within_two_percent(tmp_path: Path) -> None:
    runs = plan_study(read_study(STUDIES / "scaling.toml"), tmp_path)
    for point in {run.point for run in runs}:
        counts = [run.compute.parameters for run in runs if run.point == point]
        assert max(counts) <= 1.02 * min(counts)


def test_the_papers_size_is_a_preset_away(tmp_path: Path) -> None:
    study = read_study(STUDIES / "rq4.toml", preset="paper-2b")
    last = [run for run in plan_study(study, tmp_path) if run.point == 3 and run.seed == 0]
    prior, *baselines = last
    assert prior.compute.parameters == 1_829_875_728
    assert [run.trained.settings.model.layers for run in baselines] == [27, 27]
    for run in last:
        assert run.compute.tokens == 250_000 * 1408 * 512
        # the paper's figure ends at 1946 EFLOPs, with N = 1.8e9
        assert run.compute.paper_flops == pytest.approx(1946e18, rel=0.03)


def ready_quickstart(run: Path, folder: Path) -> None:
    """What pipelines/quickstart.sh would leave, made in this process."""

    def settings(model: type[SettingsT], table: str) -> SettingsT:
        return resolve(model, table, "tiny", folder / "mini.toml")

    here = Run(device="cpu")
    cut = settings(TokenizeSettings, "tokenize")
    tokenize([str(folder / "corpus.txt")], run / "tokens", cut, None, here)
    train(
        TEXT_VAE,
        run / "tokens",
        run / "vae",
        settings(VAESettings, "vae"),
        here,
    )
    encoding = settings(EncodeSettings, "encode")
    encode(run / "tokens", run / "vae", run / "latents", encoding, here)
    train(
        PRIOR,
        run / "latents",
        run / "prior",
        settings(PriorSettings, "prior"),
        here,
    )
    prompts = list(read_prompts(folder / "prompts.jsonl"))
    options = settings(SampleSettings, "sample")
    sample_to_artifact(run / "prior", prompts, run / "samples", options, here)
    (run / "words.txt").write_text("")


@pytest.mark.slow
def test_joint_training_and_baselines_stand_on_a_quickstart(tmp_path: Path) -> None:
    (tmp_path / "mini.toml").write_text(SETTINGS + SAMPLE + "[eval]\nmax_new_tokens = 4\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Anna sees"}\n{"prompt": "Tom"}\n')
    variables = environment(
        tmp_path,
        CORPUS=documents(tmp_path),
        SETTINGS=tmp_path / "mini.toml",
        PROMPTS=tmp_path / "prompts.jsonl",
        TASKS="lambada",
        LIMIT=2,
    )
    run = tmp_path / "run"
    ready_quickstart(run, tmp_path)
    assert "joint-samples" in bash("joint.sh", run, env=variables)
    shown = bash("baselines.sh", run, env=variables)
    assert shown.count("perplexity\t") == 3
    assert "difference" in shown
    prior = read_manifest(run / "prior")
    for name, kind in (("ar", "autoregressive"), ("llada", "llada")):
        baseline = Artifact.open(run / name, kind).manifest  # type: ignore[arg-type]
        assert baseline.settings["train"] == prior.settings["train"]
        assert baseline.settings["optim"] == prior.settings["optim"]
    assert read_manifest(run / "joint").settings["mode"] == "joint"
