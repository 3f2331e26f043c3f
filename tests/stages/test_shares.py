"""Shares of a batch side by side: the bytes, the interruption and the errors of a training on one thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cola_cli.errors import Interrupted
from cola_cli.families import AUTOREGRESSIVE, LLADA, PRIOR, TEXT_VAE, Family
from cola_cli.machine import interruption
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.training import Train
from cola_cli.stages.run import Run
from cola_cli.stages.train import plan_training, train
from cola_cli.training import shares
from cola_cli.training.loop import Training
from cola_cli.training.objectives.text_vae import TextVAEObjective
from cola_cli.training.shares import Shares, Workers
from tests.conftest import content
from tests.stages.conftest import OPTIM, SEQ_LEN, TRAIN, assignments, prior_settings, vae_settings
from tests.stages.killing import assert_same_metrics, kill_until_done

# three shares, of 8, 8 and 4 sequences
LARGE: dict[str, Any] = {"batch_size": 20, "steps": 10, "validation_sequences": 20}
BASELINE = BaselineSettings.model_validate(
    {
        "model": {"layers": 1, "dim": 32, "ffn_dim": 64, "heads": 2, "head_dim": 16},
        "optim": OPTIM,
        "train": TRAIN | LARGE,
    }
)
MUON = PriorSettings.model_validate(
    prior_settings(**LARGE).model_dump()
    | {"optim": OPTIM | {"name": "muon"}, "data": {"noisy_share": 0.5}}
)
KINDS: dict[str, tuple[Family, str, Any]] = {
    "vae": (TEXT_VAE, "tokens", vae_settings(**LARGE)),
    "frozen": (PRIOR, "latents", prior_settings(**LARGE)),
    "joint, bf16, recomputed": (
        PRIOR,
        "latents",
        prior_settings("joint", precision="bf16", activation_checkpointing=True, **LARGE),
    ),
    "frozen, muon, half the noisy blocks": (PRIOR, "latents", MUON),
    "autoregressive": (AUTOREGRESSIVE, "tokens", BASELINE),
    "llada": (LLADA, "tokens", BASELINE),
}


def on(threads: int) -> Run:
    """A run on the CPU with so many threads."""
    return Run(device="cpu", threads=threads)


@pytest.fixture(autouse=True)
def torch_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(1)


@pytest.fixture
def neighbour() -> Iterator[None]:
    """A process that never rests."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield
        process.kill()


@pytest.mark.usefixtures("neighbour")
@pytest.mark.parametrize("name", KINDS)
def test_the_bytes_do_not_depend_on_the_threads_or_the_load(
    made: Path, tmp_path: Path, name: str
) -> None:
    family, source, settings = KINDS[name]
    for threads in (1, 2, 3):
        train(family, made / source, tmp_path / str(threads), settings, on(threads))
    for threads in (2, 3):
        assert content(tmp_path / "1") == content(tmp_path / str(threads))
        assert_same_metrics(tmp_path / "1", tmp_path / str(threads))


def test_micro_batches_change_no_byte(made: Path, tmp_path: Path) -> None:
    for size in (0, 1, 17):
        settings = vae_settings(**LARGE, micro_batch=size)
        train(TEXT_VAE, made / "tokens", tmp_path / str(size), settings, on(2))
    assert content(tmp_path / "0") == content(tmp_path / "1") == content(tmp_path / "17")


def test_shares_give_the_training_of_the_whole_batch(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, source, settings = KINDS["frozen"]
    pieces = train(family, made / source, tmp_path / "pieces", settings, on(2)).statistics
    monkeypatch.setattr(shares, "SHARE_TOKENS", 20 * SEQ_LEN)
    whole = train(family, made / source, tmp_path / "whole", settings, on(2)).statistics
    for name in ("validation_loss", "loss", "gradient_norm"):
        assert pieces[name] == pytest.approx(whole[name], rel=1e-4)
    assert content(tmp_path / "pieces") != content(tmp_path / "whole")


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes in the next training while `step` is computed."""
    update = Training._update

    def stopping(self: Training, made: Any) -> None:
        if made.number == step:
            monkeypatch.setattr(interruption, "_received", signal.SIGTERM)
        update(self, made)

    monkeypatch.setattr(Training, "_update", stopping)


def test_a_run_goes_on_with_another_number_of_threads(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, source, settings = KINDS["frozen"]
    train(family, made / source, tmp_path / "quiet", settings, on(1))
    stop_after(6, monkeypatch)
    with pytest.raises(Interrupted):
        train(family, made / source, tmp_path / "stopped", settings, on(1))
    monkeypatch.undo()
    train(family, made / source, tmp_path / "stopped", settings, on(2))
    assert content(tmp_path / "stopped") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "stopped", tmp_path / "quiet")


@pytest.mark.parametrize("begun_with", [0, 64])
def test_a_run_goes_on_with_the_shares_that_it_began_with(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_with: int
) -> None:
    """Versions before had no shares (0); a later one may have others."""
    family, source, settings = KINDS["vae"]

    def other(*_: object) -> Shares:
        return Shares(begun_with, 1)

    with monkeypatch.context() as patch:
        patch.setattr(Shares, "chosen", other)
        train(family, made / source, tmp_path / "quiet", settings, on(1))
    with monkeypatch.context() as patch:
        patch.setattr(Shares, "chosen", other)
        stop_after(6, patch)
        with pytest.raises(Interrupted):
            train(family, made / source, tmp_path / "stopped", settings, on(1))
    train(family, made / source, tmp_path / "stopped", settings, on(1))
    assert content(tmp_path / "stopped") == content(tmp_path / "quiet")
    train(family, made / source, tmp_path / "new", settings, on(1))
    assert content(tmp_path / "new") != content(tmp_path / "quiet")


def test_an_error_in_one_share_ends_the_run_and_loses_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, source, settings = KINDS["vae"]
    train(family, made / source, tmp_path / "quiet", settings, on(2))
    forward = TextVAEObjective.forward
    calls: list[str] = []

    def failing(self: TextVAEObjective, batch: Any, evaluate: bool = False) -> dict[str, Tensor]:
        if not evaluate:
            calls.append(threading.current_thread().name)
        if len(calls) == 3 * 7 + 2:  # the second share of the eighth step
            raise MemoryError("no room")
        return forward(self, batch, evaluate)

    with monkeypatch.context() as patch:
        patch.setattr(TextVAEObjective, "forward", failing)
        with pytest.raises(MemoryError, match="no room"):
            train(family, made / source, tmp_path / "broken", settings, on(2))
    assert all(name.startswith("share") for name in calls)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("share")]
    assert (tmp_path / "broken/checkpoints/step-00000005").exists()
    train(family, made / source, tmp_path / "broken", settings, on(2))
    assert content(tmp_path / "broken") == content(tmp_path / "quiet")


def test_a_killed_process_goes_on(made: Path, tmp_path: Path) -> None:
    settings = vae_settings(**LARGE | {"steps": 60}, checkpoint_every=10)
    command = ["train", "vae", str(made / "tokens"), "--device", "cpu", *assignments(settings)]
    killed = [*command, "-o", str(tmp_path / "killed"), "--threads", "2"]
    kill_until_done(killed, "matrix products", kills=3, span=1.0, seed=5)
    train(TEXT_VAE, made / "tokens", tmp_path / "quiet", settings, on(1))
    assert content(tmp_path / "killed") == content(tmp_path / "quiet")


@pytest.mark.parametrize(
    ("batch", "micro_batch", "length", "rows", "at_once"),
    [
        (8, 0, 128, 2, 4),
        (8, 4, 128, 2, 2),
        (8, 1, 128, 2, 1),
        (64, 0, 512, 1, 4),
        (4, 0, 32, 4, 1),
        (10, 0, 100, 2, 4),
    ],
)
def test_how_a_batch_is_cut(
    batch: int, micro_batch: int, length: int, rows: int, at_once: int
) -> None:
    settings = Train(batch_size=batch, micro_batch=micro_batch)
    chosen = Shares.chosen(settings, 4, "cpu", 1, {})
    assert chosen.rows(settings, 1, length) == rows
    assert chosen.at_once(settings, length) == at_once


@pytest.mark.parametrize(
    ("settings", "device", "processes", "recorded"),
    [
        (Train(), "cuda", 1, {}),
        (Train(), "cpu", 2, {}),
        (Train(compile=True), "cpu", 1, {}),
        (Train(), "cpu", 1, {"threads": 2}),
    ],
)
def test_where_a_batch_is_not_cut(
    settings: Train, device: str, processes: int, recorded: dict[str, int]
) -> None:
    chosen = Shares.chosen(settings, 2, device, processes, recorded)
    assert chosen.at_once(settings, 16) == 0
    assert chosen.rows(settings, processes, 16) == 8 // processes


def test_results_come_in_order_from_threads_that_have_one_thread_of_torch() -> None:
    torch.set_num_threads(2)
    begun: list[int] = []
    names: set[str] = set()
    meeting = threading.Barrier(2, timeout=240)  # both threads must be at work at once

    def work(item: int) -> tuple[int, int]:
        begun.append(item)
        names.add(threading.current_thread().name)
        meeting.wait()
        time.sleep(0.02 * (item % 2 == 0))
        return item, torch.get_num_threads()

    with Workers(2) as workers:
        results = workers.each(work, range(8))
        assert next(results) == (0, 1)
        time.sleep(0.2)
        assert len(begun) <= 4  # the one that was taken, two and one ahead
        assert list(results) == [(item, 1) for item in range(1, 8)]
        assert torch.get_num_threads() == 1
    assert len(names) == 2
    assert torch.get_num_threads() == 2


def test_an_error_is_raised_when_what_was_begun_has_ended() -> None:
    ended = []

    def work(item: int) -> None:
        if item == 0:
            raise MemoryError("no room")
        time.sleep(0.2)
        ended.append(item)

    with Workers(2) as workers:
        with pytest.raises(MemoryError, match="no room"):
            list(workers.each(work, range(8)))
        count = len(ended)
        time.sleep(0.5)
        assert 1 <= count == len(ended)


def test_a_plan_counts_what_the_threads_hold_at_once(made: Path) -> None:
    family, source, settings = KINDS["vae"]
    one, two = (plan_training(family, made / source, settings, "cpu", n) for n in (1, 2))
    assert two["activation_bytes"] == pytest.approx(2 * one["activation_bytes"])
    assert two["state_bytes"] - one["state_bytes"] == 4 * one["parameters"]
    assert two["flops_per_step"] == one["flops_per_step"]
