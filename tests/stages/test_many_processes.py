"""The same training on one process and on two under torchrun (gloo): DDP, FSDP2, and resuming across."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import content
from tests.stages.conftest import assignments, prior_settings, vae_settings
from tests.stages.killing import assert_same_metrics

# AdamW divides by the gradient's size: a tiny eps would make a whole step of the rounding error in a
# gradient that is zero in exact arithmetic.
EPS = ["--set", "optim.eps=1e-4"]
PROGRAM = "from cola_cli.cli.main import main; main()"


def start(processes: int, arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """`cola` on so many processes."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program)]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc-per-node={processes}", str(program)]
    return subprocess.Popen(
        [*command, *arguments, "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
    )


def run(processes: int, arguments: list[str], folder: Path) -> None:
    """`cola` on so many processes, to its end."""
    process = start(processes, arguments, folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def difference(one: Path, other: Path) -> float:
    """The largest difference of any weight."""
    largest = 0.0
    for file in one.glob("*/model.safetensors"):
        a, b = load_file(file), load_file(other / file.relative_to(one))
        largest = max(largest, *(float((a[name] - b[name]).abs().max()) for name in a))
    return largest


@pytest.mark.slow
def test_two_processes_train_vae_and_prior_as_one_does(made: Path, tmp_path: Path) -> None:
    settings = prior_settings("joint", steps=20, micro_batch=1)
    command = ["train", "prior", str(made / "latents"), "--mode", "joint", *assignments(settings)]
    command += ["--device", "cpu"]
    for name, processes, parallel in (("one", 1, "ddp"), ("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")):
        flags = [*EPS, "--set", f"train.parallel={parallel}", "-o", str(tmp_path / name)]
        run(processes, [*command, *flags], tmp_path)
    assert difference(tmp_path / "one", tmp_path / "ddp") < 1e-5
    assert difference(tmp_path / "ddp", tmp_path / "fsdp") < 1e-5


@pytest.mark.slow
def test_a_sharded_checkpoint_of_two_processes_resumes_on_one_and_on_two(
    made: Path, tmp_path: Path
) -> None:
    settings = vae_settings(steps=16, validate_every=16, checkpoint_every=9, ema_decay=0.9)
    flags = [*EPS, *assignments(settings), "--set", "optim.name=muon"]
    command = ["train", "vae", str(made / "tokens"), *flags, "--device", "cpu"]
    run(1, [*command, "-o", str(tmp_path / "one")], tmp_path)
    program = tmp_path / "dying.py"
    program.write_text(
        "import cola_cli.training.loop as loop\n"
        "update = loop.Training._update\n"
        "def dies(self, step):\n"
        "    if step.number == 12:\n"
        "        raise SystemExit(9)\n"
        "    update(self, step)\n"
        "loop.Training._update = dies\n" + PROGRAM
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    output = ["-o", str(tmp_path / "two"), "--set", "train.parallel=fsdp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    died = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(program), *command, *output],
        capture_output=True,
        env=environment,
    )
    assert died.returncode != 0
    saved = tmp_path / "two" / "checkpoints" / "step-00000009"
    assert (saved / "COMMITTED.json").exists()
    sizes = [file.stat().st_size for file in saved.glob("shard-*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)  # nobody wrote, or held, the whole
    assert {file.suffix for file in saved.iterdir()} == {".json", ".safetensors"}  # no pickle
    shutil.copytree(tmp_path / "two", tmp_path / "ddp")
    run(1, [*command, "-o", str(tmp_path / "two")], tmp_path)
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-5
    run(2, [*command, "-o", str(tmp_path / "ddp")], tmp_path)
    assert difference(tmp_path / "one", tmp_path / "ddp") < 1e-5


@pytest.mark.slow
def test_two_processes_encode_as_one_does(made: Path, tmp_path: Path) -> None:
    command = ["encode", str(made / "tokens"), "--vae", str(made / "vae"), "--device", "cpu"]
    run(2, [*command, "-o", str(tmp_path / "two")], tmp_path)
    assert content(tmp_path / "two") == content(made / "latents")


@pytest.mark.slow
def test_two_processes_tokenize_as_one_does(made: Path, tmp_path: Path) -> None:
    command = ["tokenize", str(made / "corpus.txt"), "--vocab-size", "300", "--seq-len", "32"]
    command += ["--set", "part_bytes=4000", "--validation-fraction", "0.2", "--workers", "1"]
    run(2, [*command, "-o", str(tmp_path / "two")], tmp_path)
    assert content(tmp_path / "two") == content(made / "tokens")


@pytest.mark.slow
def test_a_preempted_run_of_two_processes_goes_on_exactly(made: Path, tmp_path: Path) -> None:
    settings = prior_settings(steps=60, checkpoint_every=5, validate_every=30)
    command = ["train", "prior", str(made / "latents"), *assignments(settings), "--device", "cpu"]
    run(2, [*command, "-o", str(tmp_path / "quiet")], tmp_path)
    stopped = [*command, "-o", str(tmp_path / "stopped")]
    process = start(2, stopped, tmp_path)
    checkpoints = tmp_path / "stopped" / "checkpoints"
    while not list(checkpoints.glob("step-*/COMMITTED.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "stopped" / "prior" / "model.safetensors").exists()
    run(2, stopped, tmp_path)
    assert content(tmp_path / "stopped") == content(tmp_path / "quiet")
    assert_same_metrics(tmp_path / "stopped", tmp_path / "quiet")
