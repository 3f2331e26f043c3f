"""cola study: planned as it runs, resumed after a kill, its commands the same, its metrics by hand."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
import signal
import statistics
import subprocess
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stdout
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from cola_cli.artifacts.manifest import read_manifest
from cola_cli.artifacts.reading import read_record
from cola_cli.artifacts.verify import verify
from cola_cli.cli.main import app
from cola_cli.cli.study import executor
from cola_cli.cost import training as flops
from cola_cli.errors import InputError, UsageError
from cola_cli.reporting import Silent
from cola_cli.stages.matching import matched_settings
from cola_cli.studies.measurements import Curves
from cola_cli.studies.plan import Trial, plan_study
from cola_cli.studies.run import missing_steps, run_study, shell_command
from cola_cli.studies.settings import Study, parse_study
from cola_cli.weights.configs import prior_config, transformer_config
from tests.conftest import Run, cola_command, content
from tests.stages.conftest import made_up_text

EXECUTE = executor(typer.main.get_command(app))

STUDY = """
[study]
seeds = [3, 4]
passages = 6
context = 30
metrics = ["perplexity", "entropy", "words", "cloze", "validation_loss"]
[tokenize]
vocab_size = 300
seq_len = 32
validation_fraction = 0.2
workers = 1
[vae.model]
dim = 32
ffn_dim = 64
heads = 2
encoder_layers = 1
decoder_layers = 1
latent_dim = 8
[vae.train]
steps = 3
batch_size = 4
[prior.model]
dim = 32
heads = 2
head_dim = 16
rope_dim = 12
layers = 2
block_size = 8
[prior.optim]
lr = 4e-3
warmup_steps = 2
[prior.train]
steps = 8
batch_size = 4
validation_sequences = 8
[judge]
model = { layers = 1, dim = 32, ffn_dim = 64, heads = 2, head_dim = 16 }
train = { steps = 3, batch_size = 4 }
[sample]
steps = 2
guidance = 1.0
temperature = 1.0
max_new_tokens = 6
[eval]
steps = 2
max_new_tokens = 4
[[sweep]]
name = "compute"
[[sweep.line]]
name = "cola"
model = "frozen"
[[sweep.line]]
name = "masked"
model = "llada"
match = "cola"
[[sweep.point]]
share = 0.25
[[sweep.point]]
share = 0.5
[[sweep.point]]
share = 1.0
"""


def study_of(corpus: Path, text: str = STUDY, **changes: object) -> Study:
    tree = tomllib.loads(text)
    tree["study"] |= {"corpus": [str(corpus)]} | changes
    return parse_study(tree, "the study")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "corpus.txt"
    lines = made_up_text(400).split("\n\n")
    # several sentences a document, the last word of each a word
    path.write_text("\n\n".join(" ".join(f"{a} {b.replace('.', ' again.')}" for a, b in [pair])
                                for pair in zip(lines[::2], lines[1::2], strict=True)))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def made(corpus: Path) -> Path:
    """A study that was run."""
    folder = corpus.parent / "run"
    run_study(study_of(corpus), folder, EXECUTE, Silent(), "cpu", 1)
    return folder


def test_a_study_that_is_run_again_finds_nothing_to_do(corpus: Path, made: Path, cola: Run) -> None:
    assert run_study(study_of(corpus), made, EXECUTE, Silent(), "cpu", 1)[1] == 0
    (corpus.parent / "study.toml").write_text(STUDY)
    options = [corpus.parent / "study.toml", "-o", made, "--corpus", corpus]
    assert "up to date" in cola("study", "run", *options).stdout
    assert cola("study", "run", *options, "--commands").stdout == ""
    shown = json.loads(cola("study", "plan", *options, "--json").stdout)["runs"]
    assert len(shown) == 2 * 3 * 2
    assert {row["left"] for row in shown} == {0}


def test_the_former_name_of_the_command_still_works_and_is_not_listed(cola: Run) -> None:
    shown = cola("scaling", "--help").stdout
    assert all(name in shown for name in ("plan", "run", "table", "plot"))
    assert "scaling" not in re.findall(r"^\W*(\w+)", cola("--help").stdout, re.MULTILINE)


def test_every_point_is_made_of_ordinary_whole_artifacts(made: Path) -> None:
    places = [path.parent for path in made.glob("*/manifest.json")]
    assert [finding for place in places for finding in verify(place).findings] == []
    kinds = [read_manifest(place).kind for place in places]
    assert kinds.count("prior") == kinds.count("llada") == 6
    assert kinds.count("tokens") == kinds.count("vae") == kinds.count("latents") == 1
    assert kinds.count("autoregressive") == 1  # the judge
    assert kinds.count("samples") == kinds.count("evaluation") == 12


def test_the_plan_says_what_the_runs_record(corpus: Path, made: Path, tmp_path: Path) -> None:
    before = plan_study(study_of(corpus), tmp_path / "nothing")
    for run, unseen in zip(plan_study(study_of(corpus), made), before, strict=True):
        manifest = read_manifest(run.trained.path)
        last = pq.read_table(run.trained.path / "metrics.parquet").to_pylist()[-1]
        assert last["flops"] == run.compute.flops
        assert last["tokens"] == run.compute.tokens
        assert manifest.statistics["steps"] == run.compute.steps
        assert unseen.compute.steps == run.compute.steps
        assert unseen.trained.path.name == run.trained.path.name
        if run.model == "frozen":
            assert manifest.statistics["parameters"] == run.compute.parameters
        else:
            assert manifest.statistics["core_parameters"] == run.compute.parameters
            assert manifest.statistics["parameters"] == run.compute.all_parameters
        assert run.compute.paper_flops == 6 * run.compute.parameters * run.compute.steps * 4 * 32
        assert manifest.settings["train"]["seed"] == run.seed
        assert manifest.settings["train"]["data_seed"] == run.seed


def test_earlier_operations_are_those_of_the_vae_and_of_encoding_what_is_read(
    corpus: Path, made: Path
) -> None:
    from cola_cli.artifacts import Artifact
    from cola_cli.weights.configs import vae_config

    run = plan_study(study_of(corpus), made)[0]
    latents = run.trained.inputs["latents"]
    shape = vae_config(Artifact.open(latents.path, "latents"))
    vae = pq.read_table(latents.inputs["vae"].path / "metrics.parquet").to_pylist()[-1]["flops"]
    encoded = flops.text_vae_encoding(shape, run.compute.steps * 4, 32)
    assert run.compute.earlier_flops == pytest.approx(vae + encoded)


def test_a_matched_line_has_the_settings_that_match_gives(corpus: Path, made: Path) -> None:
    from cola_cli.artifacts import Artifact

    runs = plan_study(study_of(corpus), made)
    priors = {(r.point, r.seed): r.trained.path for r in runs if r.line == "cola"}
    for run in (run for run in runs if run.line == "masked"):
        prior = priors[run.point, run.seed]
        expected = matched_settings(prior)
        recorded = read_manifest(run.trained.path).settings
        assert recorded["model"] == recorded["model"] | expected["model"]
        assert recorded["optim"] == expected["optim"]
        assert recorded["train"] == expected["train"]
        shapes = (
            prior_config(Artifact.open(prior)),
            transformer_config(Artifact.open(run.trained.path)),
        )
        assert shapes[0].dim == shapes[1].dim


def test_the_table_is_what_the_artifacts_say(corpus: Path, made: Path, cola: Run) -> None:
    found = json.loads(cola("study", "table", made, "--json").stdout)
    (sweep,) = found["sweeps"]
    runs = plan_study(study_of(corpus), made)
    assert len(sweep["places"]) == 6
    for place in sweep["places"]:
        pair = [r for r in runs if r.line == place["line"] and r.compute.flops == place["flops"]]
        assert len(pair) == place["seeds"] == 2
        accuracies = [
            read_manifest(r.measured["eval run cloze"].path).statistics["accuracy"] for r in pair
        ]
        assert place["cloze"]["mean"] == pytest.approx(statistics.mean(accuracies))
        texts = [json.loads(r.measured["eval text"].path.read_text()) for r in pair]
        ours = statistics.geometric_mean(text["samples"]["perplexity"] for text in texts)
        assert place["perplexity"]["mean"] == pytest.approx(ours)
        entropies = [text["samples"]["entropy"] for text in texts]
        assert place["entropy"]["mean"] == pytest.approx(statistics.mean(entropies))
        losses = [read_manifest(r.trained.path).statistics["validation_loss"] for r in pair]
        assert place["validation_loss"]["mean"] == pytest.approx(statistics.geometric_mean(losses))
        assert place["validation_loss"]["low"] < place["validation_loss"]["mean"]
    laws = {(law["metric"], law["line"]): law for law in sweep["laws"]}
    law = laws["perplexity", "cola"]
    places = [place for place in sweep["places"] if place["line"] == "cola"]
    x = [math.log(place["flops"]) for place in places]
    y = [math.log(place["perplexity"]["mean"]) for place in places]
    assert law["exponent"] == pytest.approx(statistics.linear_regression(x, y).slope)
    assert any("never between lines of different models" in note for note in found["notes"])
    assert any("under one judge" in note for note in found["notes"])
    text = cola("study", "table", made, "--markdown").stdout
    assert "| real text |" in text
    assert "**compute: power laws**" in text


def test_the_plot_has_every_point_and_the_report_reads_the_same(made: Path, cola: Run) -> None:
    cola("study", "plot", made, "-o", "plot.svg")
    file = made.parent / "plot.svg"
    drawn = CliRunner().invoke(app, ["study", "plot", str(made), "-o", str(file)])
    assert drawn.exit_code == 0, drawn.output
    picture = ElementTree.parse(file).getroot()
    space = "{http://www.w3.org/2000/svg}"
    titles = [text.text for text in picture.iter(f"{space}text") if text.get("class") == "title"]
    assert titles == ["perplexity", "entropy", "words", "cloze", "validation_loss"]
    perplexity = picture.find(f"{space}g/{space}g")
    assert perplexity is not None
    said = [title.text or "" for title in perplexity.iter(f"{space}title")]
    assert sum(text.startswith("cola: ") for text in said) == 3
    assert sum(text.startswith("masked: ") for text in said) == 3
    assert "://" not in file.read_text().replace("http://www.w3.org/2000/svg", "")
    scaling = read_record(made / "scaling.json", Curves, "")
    points = [p for p in scaling.points if p.metric == "perplexity" and p.family == "cola"]
    assert len(points) == 3
    assert "at training compute, FLOPs, logarithmic" in said[0]
    assert {level.name for level in scaling.levels} == {"real text"}
    page = made.parent / "report.html"
    assert CliRunner().invoke(app, ["report", str(made), "-o", str(page)]).exit_code == 0
    assert "<h2>Scaling</h2>" in re.sub(r' id="[^"]*"', "", page.read_text())


@pytest.mark.slow
def test_killed_again_and_again_a_study_ends_as_if_undisturbed(
    corpus: Path, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    arguments = ["study", "run", tmp_path / "study.toml", "-o", tmp_path / "killed"]
    options = ["--corpus", corpus, "--device", "cpu", "--threads", "1"]
    wanted = ["train prior", "eval text", "train llada"]
    for stage in wanted:
        process = subprocess.Popen(
            cola_command(*arguments, *options), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        seen = 0
        for line in process.stderr:
            seen += f"cola {stage}," in line
            if seen == 2:  # the second command of that kind in this process has begun
                break
        assert seen == 2, "nothing was left to be killed at"
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = subprocess.run(cola_command(*arguments, *options), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    again = tmp_path / "killed"
    assert {path.name for path in made.iterdir() if path.is_dir()} == {
        path.name for path in again.iterdir() if path.is_dir()
    }
    for path in made.glob("*/manifest.json"):
        other = again / path.parent.name
        assert content(path.parent) == content(other)
        assert read_manifest(path.parent).fingerprint == read_manifest(other).fingerprint
    for file in [*made.glob("words-*.json"), *made.glob("cloze-*"), made / "scaling.json"]:
        assert (again / file.name).read_bytes() == file.read_bytes()
    for file in made.glob("text-*.json"):
        ours, theirs = (json.loads((p / file.name).read_text()) for p in (made, again))
        assert ours["samples"] == theirs["samples"]


def test_the_printed_commands_make_the_same(corpus: Path, tmp_path: Path) -> None:
    study = study_of(corpus, seeds=[3])
    whole, typed = tmp_path / "whole", tmp_path / "typed"
    run_study(study, whole, EXECUTE, Silent(), "cpu", 1)
    commands = [shell_command(step, "cpu", 1) for step in missing_steps(study, typed)]
    assert len(commands) == len(set(commands)) > 20
    for line in commands:
        words, _, rest = line.partition(" > ")
        out = io.StringIO()
        with redirect_stdout(out):
            called = CliRunner().invoke(app, shlex.split(words)[1:])
        assert called.exit_code == 0, f"{line}\n{called.output}"
        if rest:
            new, _, moved = rest.partition(" && mv ")
            assert moved == f"{new} {new.removesuffix('.new')}"
            Path(new.removesuffix(".new")).write_text(called.stdout)
    assert missing_steps(study, typed) == []
    assert run_study(study, typed, EXECUTE, Silent(), "cpu", 1)[1] == 0
    for path in whole.glob("*/manifest.json"):
        assert content(path.parent) == content(typed / path.parent.name)
    assert (whole / "scaling.json").read_bytes() == (typed / "scaling.json").read_bytes()


def test_what_is_printed_is_what_is_run(corpus: Path, tmp_path: Path) -> None:
    study, folder = study_of(corpus, seeds=[3]), tmp_path / "run"
    printed = [shell_command(step, "cpu", 1) for step in missing_steps(study, folder)]
    executed = []

    def execute(arguments: list[str]) -> str:
        executed.append(arguments)
        return EXECUTE(arguments)

    run_study(study, folder, execute, Silent(), "cpu", 1)
    assert [shlex.split(line.partition(" > ")[0]) for line in printed] == [
        ["cola", *arguments] for arguments in executed
    ]


def test_a_command_that_fails_ends_the_study_with_its_exit_code(tmp_path: Path) -> None:
    study = study_of(tmp_path / "nothing.txt", seeds=[3])
    with pytest.raises(typer.Exit) as raised:
        run_study(study, tmp_path / "run", EXECUTE, Silent(), "cpu", 1)
    assert raised.value.exit_code == InputError.exit_code


def test_a_signal_inside_a_command_ends_the_study_once_and_as_a_signal(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(STUDY.replace("steps = 8", "steps = 100000"))
    options = ["-o", tmp_path / "run", "--corpus", corpus, "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(
        cola_command("study", "run", tmp_path / "study.toml", *options),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    # the third command: signals are still handled after others have ended
    assert any("cola train prior," in line for line in process.stderr)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    rest = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in rest
    assert len(re.findall("^cola: ", rest, re.MULTILINE)) == 1


def runs_with(corpus: Path, folder: Path, old: str, new: str) -> list[Trial]:
    assert old in STUDY
    return plan_study(study_of(corpus, STUDY.replace(old, new)), folder)


def test_a_budget_of_operations_gives_the_steps_that_come_nearest(
    corpus: Path, tmp_path: Path
) -> None:
    budget = 1e9
    runs = runs_with(corpus, tmp_path, "share = 0.25", f"flops = {budget}")
    for run in (run for run in runs if run.point == 0):
        a_step = run.compute.flops / run.compute.steps
        assert abs(run.compute.flops - budget) <= a_step / 2
    assert len({run.compute.steps for run in runs if run.point == 0}) == 2  # one a line
    budget = 1e9
    for run in runs_with(corpus, tmp_path, "share = 0.25", f"paper_flops = {budget}"):
        if run.point == 0:
            assert abs(run.compute.paper_flops - budget) <= 3 * run.compute.parameters * 4 * 32


def test_what_runs_share_is_made_once_and_what_changes_is_made_anew(
    corpus: Path, tmp_path: Path
) -> None:
    one = plan_study(study_of(corpus), tmp_path)
    other = runs_with(corpus, tmp_path, "lr = 4e-3", "lr = 3e-3")
    names = [{step.path.name for run in runs for step in run.steps} for runs in (one, other)]
    shared = {name.partition("-")[0] for name in names[0] & names[1]}
    assert shared == {"tokens", "vae", "latents", "cloze", "ar"}
    setting = runs_with(corpus, tmp_path, "share = 0.25", "sample.guidance = 2.0")
    alone = [run for run in setting if run.point == 0]
    full = [run for run in setting if run.point == 2]
    assert [r.trained for r in alone] == [r.trained for r in full]
    assert [r.samples for r in alone] != [r.samples for r in full]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[judge]", "[juge]", "Did you mean judge?"),
        (
            "dim = 32\nheads = 2\nhead_dim",
            "dims = 32\nheads = 2\nhead_dim",
            "compute, cola, point 1",
        ),
        ('match = "cola"', 'match = "colla"', "Did you mean cola?"),
        ("share = 1.0", "share = 1.0\nflops = 1e9", "only one of share, flops"),
        ('"entropy"', '"entropie"', "Did you mean entropy?"),
        ("share = 1.0", "shares = 1.0", "shares"),
        ("seeds = [3, 4]", "seeds = [3, 3]", "a seed occurs twice"),
        ("rope_dim = 12", "rope_dim = 13", "rope_dim 13 must be even"),
    ],
)
def test_what_is_wrong_in_a_study_is_said_before_anything_starts(
    corpus: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(UsageError) as raised:
        runs_with(corpus, tmp_path / "none", old, new)
    assert said in str(raised.value)
    assert not (tmp_path / "none").exists()
