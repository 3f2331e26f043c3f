"""A kind of model is one entry of FAMILIES: a toy of this file is trained, killed, resumed and sampled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cola_cli.artifacts import Artifact, Output
from cola_cli.artifacts.kinds import Tokens
from cola_cli.corpus.sequences import Rows
from cola_cli.cost.training import Cost
from cola_cli.families import (
    AUTOREGRESSIVE,
    DERIVED,
    FAMILIES,
    Base,
    Data,
    Family,
    Networks,
    TokenModel,
)
from cola_cli.models.config import Shape, Size
from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.sampler import Sampler
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.sample import SamplingOptions
from cola_cli.stages.status import survey
from cola_cli.training.objectives import objective as objectives
from cola_cli.training.objectives.objective import Batch, Draws, Objective
from tests.conftest import content
from tests.stages.conftest import OPTIM, TRAIN, make_tokens
from tests.stages.killing import assert_same_manifest, assert_same_metrics

ROOT = Path(__file__).parents[1]
MAIN = "from tests.test_families import main; main()"


class BigramConfig(Shape):
    """A table of the next token."""

    KEYS = ("vocab_size", "dim")
    vocab_size: Size
    dim: Size

    def parameter_count(self) -> int:
        return (2 * self.dim + 1) * self.vocab_size


class Bigram(nn.Module):
    """p(next token | the token before)."""

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.token_out = nn.Linear(config.dim, config.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, L) -> logits (B, L, vocab)."""
        return self.token_out(self.embedding(ids))


class BigramLoss(Objective):
    """-E log p(x_i | x_{i-1})."""

    def __init__(self, network: Bigram, length: int) -> None:
        super().__init__()
        self.network, self.length = network, length

    def draw(
        self, rows: Rows, randoms: Sequence[np.random.Generator], step: int, validation: bool
    ) -> list[Draws]:
        return [{"tokens": rows.tokens, "target_weight": objectives.token_weights(rows)[:, 1:]}]

    def forward(self, batch: Batch, evaluate: bool = False) -> dict[str, Tensor]:
        logits, tokens = self.network(batch["tokens"][:, :-1]), batch["tokens"][:, 1:]
        return {"loss": objectives.reconstruction(logits, tokens, batch["target_weight"])}


@dataclass
class BigramRow:
    request: Request
    slot: int


class BigramSampler(Sampler[BigramRow]):
    """The likeliest next token, again and again."""

    def __init__(self, network: Bigram, options: SamplingOptions, batch_size: int) -> None:
        super().__init__(options, batch_size)
        self.network = network

    def join(self, requests: list[Request]) -> None:
        self.active += [BigramRow(request, self._slots.take()) for request in requests]

    def step(self) -> list[tuple[Request, Generation]]:
        row = self.active[0]
        ids = list(row.request.prompt)
        for _ in range(self._options(row.request).max_new_tokens or 0):
            ids.append(int(self.network(torch.tensor([ids[-1:]])).argmax()))
        self._remove(row)
        return [(row.request, Generation(ids[len(row.request.prompt) :]))]


def config(data: Data, settings: BaselineSettings) -> BigramConfig:
    return BigramConfig(vocab_size=data.vocab_size, dim=settings.model.dim)


def cost(shape: BigramConfig, data: Data, settings: BaselineSettings) -> Cost:
    head = shape.vocab_size * shape.dim
    flops = 6.0 * settings.train.batch_size * (data.length - 1) * head
    return Cost(shape.parameter_count(), 0, flops, 4.0 * head)


def build(shape: BigramConfig, tokens: Tokens, settings: BaselineSettings) -> Networks:
    network = Bigram(shape)
    return Networks(BigramLoss(network, tokens.statistics.seq_len), {"bigram": (network, shape)})


def read_config(artifact: Artifact) -> BigramConfig:
    from cola_cli.weights.configs import read_config

    return read_config(artifact, "bigram", BigramConfig)


def load(artifact: Artifact) -> Bigram:
    from cola_cli.weights.artifact import load_network

    return load_network(artifact, "bigram", Bigram, read_config(artifact))


TOY = Family(
    kind="bigram",
    command="toy",
    title="Bigram table",
    summary="Train a table of the next token.",
    reads="tokens",
    table="baseline",
    config=config,
    cost=cost,
    build=build,
    trained=lambda settings: ("bigram",),
    ignored=("masking",),
    metrics={"validation_loss": "loss, nats a token"},
    token_model=TokenModel(
        read_config=read_config,
        load=load,
        sampler=BigramSampler,
        flops=lambda shape, options, prompt, new: 2.0 * new * shape.dim * shape.vocab_size,
        next_token=True,
    ),
)


def go_on(base: Artifact) -> Family:
    """The tables that begin as the one of an artifact."""

    def build(shape: BigramConfig, tokens: Tokens, settings: BaselineSettings) -> Networks:
        objective = BigramLoss(load(base), tokens.statistics.seq_len)
        return Networks(objective, {"bigram": (objective.network, shape)})

    return replace(
        AGAIN,
        config=lambda data, settings: read_config(base),
        build=build,
        inputs={TOY.kind: base.manifest.fingerprint},
    )


AGAIN = replace(
    TOY,
    command="again",
    group="",
    summary="Train a table of the next token further.",
    base=Base(TOY.kind, "The table to begin with.", go_on),
    flags=("train.steps",),
)


def main() -> None:
    """`cola` with one kind of model more, and one stage that makes such a model from another."""
    FAMILIES[TOY.kind] = TOY
    DERIVED[1:] = [AGAIN]
    from cola_cli.cli.main import main as cola

    cola()


def answer() -> None:
    """Run the command lines on stdin, JSON lists, in this process; what each did goes to stdout."""
    from tests.conftest import run_here

    for line in sys.stdin:
        done = run_here(json.loads(line), Path(), main=main)
        print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)


class Toy:
    """Runs of that `cola` in a folder: in one process, which loads torch once, or in one of its own."""

    ENVIRONMENT: ClassVar = os.environ | {"PYTHONPATH": str(ROOT)}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = self._start("from tests.test_families import answer; answer()")

    def _start(self, *words: object) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", *map(str, words)],
            cwd=self.folder, env=self.ENVIRONMENT, text=True, stdin=pipe, stdout=pipe, stderr=pipe,
        )  # fmt: skip

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return self._start(MAIN, *arguments)

    def __call__(self, *arguments: object) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([*map(str, arguments)]), file=self.process.stdin, flush=True)
        code, out, err = json.loads(self.process.stdout.readline())
        assert code == 0, err
        return out


TRAINING = {"model.dim": 8} | {f"optim.{k}": v for k, v in OPTIM.items()}
TRAINING |= {f"train.{k}": v for k, v in (TRAIN | {"steps": 150, "checkpoint_every": 7}).items()}
SETTINGS = [part for k, v in TRAINING.items() for part in ("--set", f"{k}={v}")]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    """A folder with tokens and a trained toy."""
    folder = tmp_path_factory.mktemp("toy")
    make_tokens(folder)
    run = Toy(folder)
    run("train", "toy", "tokens", "-o", "quiet", *SETTINGS)
    yield run
    run.process.communicate()


def test_a_toy_kind_killed_and_resumed_is_the_same_to_the_byte(toy: Toy) -> None:
    process = toy.start("train", "toy", "tokens", "-o", "killed", *SETTINGS)
    while not list((toy.folder / "killed" / "checkpoints").glob("*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    toy("train", "toy", "tokens", "-o", "killed", *SETTINGS)
    killed, quiet = toy.folder / "killed", toy.folder / "quiet"
    assert content(killed) == content(quiet)
    assert_same_metrics(killed, quiet)
    assert_same_manifest(killed, quiet)


def test_a_toy_kind_is_trained_shown_and_sampled_by_every_command(toy: Toy) -> None:
    assert "up to date" in toy("train", "toy", "tokens", "-o", "quiet", *SETTINGS)
    manifest = Artifact.open(toy.folder / "quiet").manifest
    assert (manifest.kind, manifest.identity.stage) == ("bigram", "train toy")
    assert "masking" not in manifest.identity.settings
    shown = toy("train", "toy", "tokens", "-o", "x", "--dry-run", "--json", *SETTINGS)
    assert json.loads(shown)["plan"]["parameters"] == manifest.statistics["parameters"]
    assert "Train a table of the next token." in toy("train", "--help")

    sample = ["sample", "quiet", "--prompt", "Anna sees", "-n", "5"]
    (row,) = toy(*sample, "--json").splitlines()
    assert json.loads(row)["tokens"] == 5
    plan = json.loads(toy(*sample, "--dry-run", "--json"))["plan"]
    assert plan["parameters"] == manifest.statistics["parameters"]
    toy(*sample, "-o", "samples")
    assert Artifact.open(toy.folder / "samples").manifest.statistics["tokens"] == 5

    shown = json.loads(toy("status", ".", "--json"))["artifacts"]
    states = {row["path"]: row for row in shown}
    assert states["quiet"]["next"] == 'cola sample quiet --prompt "..."'
    toy("report", ".", "-o", "report.html")
    assert "Bigram table" in (toy.folder / "report.html").read_text()


def test_a_stage_that_makes_a_model_from_another_is_an_entry_too(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["again", "quiet", "tokens", "-o", "further", *SETTINGS, "--steps", "160", "--json"]
    assert json.loads(toy(*command))["path"] == "further"
    before, after = (Artifact.open(toy.folder / name).manifest for name in ("quiet", "further"))
    assert (after.kind, after.identity.stage) == ("bigram", "again")
    assert after.identity.inputs["bigram"] == before.fingerprint
    assert after.statistics["validation_loss"] < before.statistics["validation_loss"]
    assert json.loads(toy(*command))["changed"] is False
    assert "Train a table of the next token further." in toy("--help")
    assert "The table to begin with." in toy("again", "--help")

    monkeypatch.setitem(FAMILIES, TOY.kind, TOY)
    monkeypatch.setattr("cola_cli.families.DERIVED", [AGAIN])
    monkeypatch.chdir(toy.folder)
    with Output.open(
        "begun", "bigram", after.identity.model_copy(update={"settings": {}})
    ).writing():
        pass
    states = {state.path: state for state in survey(Path())}
    assert states["begun"].next == "cola again quiet tokens -o begun"


def test_a_toy_kind_is_a_line_of_a_study(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    from cola_cli.studies.plan import plan_study
    from cola_cli.studies.settings import parse_study

    monkeypatch.setitem(FAMILIES, TOY.kind, TOY)
    tree: dict[str, Any] = {
        "study": {"corpus": ["corpus.txt"], "metrics": ["validation_loss"]},
        "baseline": {"model": {"dim": 8}},
        "sweep": [{"name": "s", "line": [{"name": "toy", "model": "toy"}], "point": [{}]}],
    }
    (run,) = plan_study(parse_study(tree, "study"), toy.folder / "study")
    assert run.trained.stage == "train toy"
    assert run.compute.token_flops == 2.0 * 8 * run.trained.inputs["tokens"].settings.vocab_size


def test_the_table_and_what_stands_below_it_import_no_torch() -> None:
    code = (
        "import sys, cola_cli.families; light = 'pydantic' not in sys.modules;"
        "import cola_cli.cost.training, cola_cli.cost.sampling, cola_cli.artifacts.kinds;"
        "import cola_cli.settings, cola_cli.weights.configs, cola_cli.stages.train;"
        "assert light and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_family_has_kind_command_and_title_of_its_own() -> None:
    for name in ("kind", "command", "title"):
        assert len({getattr(family, name) for family in FAMILIES.values()}) == len(FAMILIES)
    assert FAMILIES[AUTOREGRESSIVE.kind] is AUTOREGRESSIVE
