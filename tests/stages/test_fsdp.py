"""Sharded training is replicated training is training on one process, with everything on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cola_cli.families import PRIOR, TEXT_VAE
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.tokenize import tokenize
from cola_cli.stages.train import train
from tests.conftest import CPU, content
from tests.corpus.test_chats import SETTINGS, turns, write
from tests.stages.conftest import (
    OPTIM,
    TRAIN,
    assignments,
    distill_settings,
    prior_settings,
    vae_settings,
)
from tests.stages.killing import assert_same_metrics
from tests.stages.ranks import run_plan
from tests.stages.test_many_processes import EPS, difference

CHECKPOINT, KILLED = 5, 7
RUN = TRAIN | {"steps": 10, "batch_size": 6, "micro_batch": 1, "checkpoint_every": CHECKPOINT}
TRANSFORMER = {"dim": 32, "ffn_dim": 64, "heads": 2, "head_dim": 16, "layers": 2}
FULL = (0.9, 4)  # decay of the average, steps between validations
OTHERS = [(0.9, 1), (0.9, 10), (0.0, 4)]  # of one kind
CHATS = ("chats", "chats-ar", "chats-llada")  # answers of conversations packed apart
KINDS = ("frozen", "joint", "ar", "vae", "tokens", "distill", "chained", "lora", *CHATS)
THREE = ("joint", "ar", "tokens")  # of three ranks too
# Of the prior that predicts tokens: all that its loss can have.
HEAD = {
    "model.prediction": "tokens", "model.stagger": 1.0, "model.causal_history": True,
    "model.evidence": True,
    "loss.next_token": 0.5, "loss.decoder": 0.5, "data.noisy_copies": 2, "data.history_noise": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is `made`, and a prior with a token head that is taught from."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    shutil.copytree(made, folder)
    settings = prior_settings(steps=4).model_dump()
    for name, value in HEAD.items():
        table, _, leaf = name.partition(".")
        settings[table][leaf] = value
    settings["sampling"] = {"steps": 4, "guidance": 2.0}
    train(PRIOR, folder / "latents", folder / "teacher", PriorSettings(**settings), CPU)
    write(folder / "chats.jsonl", *(turns(f"Say {n}", f"{n}") for n in range(80)))
    packing = {"seq_len": 96, "separate": 8, "validation_fraction": 0.2}
    chosen = SETTINGS.model_copy(update=packing)
    tokenize([str(folder / "chats.jsonl")], folder / "chat-tokens", chosen)
    train(TEXT_VAE, folder / "chat-tokens", folder / "chat-vae", vae_settings(steps=2), CPU)
    chat = folder / "chat-tokens", folder / "chat-vae", folder / "chat-latents"
    encode(*chat, EncodeSettings(), CPU)
    return folder


def arguments(made: Path, kind: str, ema: float, validate_every: int) -> list[str]:
    """`cola train` of a kind, or `cola distill`."""
    changes = RUN | {"ema_decay": ema, "validate_every": validate_every}
    if kind == "vae":
        flags = ["train", "vae", str(made / "tokens"), *assignments(vae_settings(**changes))]
    elif kind.endswith(("ar", "llada")):
        tables = {"model": TRANSFORMER, "optim": OPTIM, "train": changes}
        source, _, command = f"-{kind}".rpartition("-")
        flags = ["train", command, str(made / ("chat-tokens" if source else "tokens"))]
        for table, values in tables.items():
            for name, value in values.items():
                flags += ["--set", f"{table}.{name}={value}"]
    elif kind in ("distill", "chained"):
        guidance = 2.0 if kind == "distill" else 1.0
        settings = distill_settings(2, {"steps": 4, "guidance": guidance}, **changes)
        flags = ["distill", str(made / "teacher"), str(made / "latents"), *assignments(settings)]
        flags += ["--passes", "2"]
    else:
        mode = "joint" if kind == "joint" else "frozen"
        settings = prior_settings(mode, **changes)
        latents = made / ("chat-latents" if kind == "chats" else "latents")
        flags = ["train", "prior", str(latents), "--mode", mode, *assignments(settings)]
        for name, value in HEAD.items() if kind in ("tokens", "lora", "chats") else ():
            flags += ["--set", f"{name}={value}"]
        if kind == "lora":
            flags += ["--from", str(made / "teacher"), "--set", "lora.rank=2"]
        if kind == "joint":  # steps in which the VAE has no gradient
            flags += ["--set", "joint.cycle=3", "--set", "joint.moving=2"]
    return [*flags, *EPS, "--device", "cpu"]


def check(made: Path, folder: Path, size: int, kind: str, others: list[tuple[float, int]]) -> None:
    """A kind on one process and on `size`, with each wrapper, undisturbed and killed; and other cases."""
    alone, together = [], []
    for case in (FULL, *others):
        command, name = arguments(made, kind, *case), "-".join(map(str, case))
        alone.append({"arguments": [*command, "-o", str(folder / f"{name}-one")]})
        for parallel in ("ddp", "fsdp"):
            flags = [*command, "--set", f"train.parallel={parallel}", "-o"]
            output = str(folder / f"{name}-{parallel}")
            together.append({"arguments": [*flags, output]})
            killed = [*flags, f"{output}-killed"]
            together += [{"arguments": killed, "killed": KILLED}, {"arguments": killed}]
    run_plan(alone, 1, folder)
    run_plan(together, size, folder)
    for finished in sorted([*folder.glob("*-fsdp"), *folder.glob("*-ddp")]):
        far = difference(finished.with_name(finished.name.rpartition("-")[0] + "-one"), finished)
        assert far < 1e-5, (finished.name, far)
    for killed_one in folder.glob("*-killed"):
        finished = folder / killed_one.name.removesuffix("-killed")
        assert content(killed_one) == content(finished), finished.name
        assert_same_metrics(killed_one, finished)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one_does(run: Path, tmp_path: Path, kind: str) -> None:
    check(run, tmp_path, 2, kind, OTHERS if kind == "frozen" else [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", THREE)
def test_three_ranks_train_as_one_does(run: Path, tmp_path: Path, kind: str) -> None:
    check(run, tmp_path, 3, kind, [])
