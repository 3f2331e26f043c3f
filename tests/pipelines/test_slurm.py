"""pipelines/slurm.sh in miniature: two real processes, preempted once, started as SLURM would start them.

`srun` and `scontrol` are small programs here that do what the script relies on: start the tasks with their
ranks, pass signals on, answer with the worst exit code, expand host names, put a job back into the queue.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.verify import verify
from cola_cli.families import TEXT_VAE
from cola_cli.settings.encode import EncodeSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.train import train
from tests.conftest import CPU
from tests.pipelines.test_torchrun import PIPELINES, SETTINGS
from tests.ports import free_port
from tests.stages.conftest import make_tokens, vae_settings

SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
from pathlib import Path
command = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": rank, "SLURM_LOCALID": rank}})
    for rank in map(str, range(int(os.environ["SLURM_NTASKS"])))
]
signal.signal(signal.SIGTERM, lambda number, frame: [task.send_signal(number) for task in tasks])
Path("srun.pid").write_text(str(os.getpid()))
sys.exit(max(code if code >= 0 else 128 - code for code in [task.wait() for task in tasks]))
"""
STEPS = 20  # enough that the signal comes while the job trains
SCONTROL = """#!/bin/sh
case $1 in
show) echo 127.0.0.1 ;;
requeue) echo "$2" >> requeued ;;
esac
"""


@pytest.mark.slow
def test_a_preempted_job_saves_is_requeued_and_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    tokens = make_tokens(run)
    train(TEXT_VAE, tokens, run / "vae", vae_settings(steps=2), CPU)
    encode(tokens, run / "vae", run / "latents", EncodeSettings(), CPU)
    before, _, after = SETTINGS.rpartition("steps = 3")
    (tmp_path / "mini.toml").write_text(f"{before}steps = {STEPS}\ncheckpoint_every = 4{after}")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(PIPELINES.parent),
        "PRESET": "tiny",
        "SETTINGS": str(tmp_path / "mini.toml"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "MASTER_PORT": str(free_port()),
    }
    job = ["bash", str(PIPELINES / "slurm.sh"), str(run)]
    first = subprocess.Popen(job, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(run.glob("prior/checkpoints/step-*/COMMITTED.json")):
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.02)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
    _, errors = first.communicate()
    assert first.returncode == 143, errors
    assert (tmp_path / "requeued").read_text() == "4711\n"
    again = subprocess.run(job, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert Artifact.open(run / "prior", "prior").manifest.statistics["steps"] == STEPS
    assert verify(run / "prior").findings == []
