"""Two hundred checkpoints in one run: the disk stays bounded, nothing leaks, the log can be read."""

from __future__ import annotations

import gc
import itertools
import threading
import tracemalloc
from pathlib import Path

import pytest

from cola_cli.artifacts import Artifact
from cola_cli.families import TEXT_VAE
from cola_cli.stages.run import Run
from cola_cli.stages.train import train
from cola_cli.training import checkpoints
from tests.stages.conftest import files_beside_the_kept_state, make_tokens, vae_settings

CHECKPOINTS = 200
KEEP_LAST, KEEP_EVERY = 2, 100


class Watching:
    """A reporter that takes down, at every step, what the process holds and what lies on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.handles: list[int] = []
        self.threads: list[int] = []
        self.memory: list[int] = []
        self.checkpoints: list[int] = []

    def start(self, what: str, total: int | None, unit: str, done: int = 0) -> None:
        pass

    def stop(self) -> None:
        pass

    def advance(self, count: int, **metrics: float | str) -> None:
        self.handles.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        self.threads.append(threading.active_count())
        self.checkpoints.append(len(list(self.folder.glob("checkpoints/step-*"))))
        if len(self.handles) % 10 == 0:
            gc.collect()
            self.memory.append(tracemalloc.get_traced_memory()[0])

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles in /proc")
def test_two_hundred_checkpoints_leave_disk_handles_threads_and_memory_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = make_tokens(tmp_path, documents=60)
    committed: list[int] = []
    commit = checkpoints.commit

    def counted(directory: Path, step: int) -> None:
        commit(directory, step)
        committed.append(step)

    monkeypatch.setattr(checkpoints, "commit", counted)
    settings = vae_settings(
        steps=CHECKPOINTS, checkpoint_every=1, validate_every=CHECKPOINTS, log_every=10,
        batch_size=1, keep_last=KEEP_LAST, keep_every=KEEP_EVERY,
    )  # fmt: skip
    watching = Watching(tmp_path / "vae")
    tracemalloc.start()
    try:
        train(TEXT_VAE, tokens, tmp_path / "vae", settings, Run(reporter=watching, device="cpu"))
    finally:
        tracemalloc.stop()

    assert committed == list(range(1, CHECKPOINTS + 1))
    # those kept, those at every hundredth step, one being written
    assert max(watching.checkpoints) <= KEEP_LAST + CHECKPOINTS // KEEP_EVERY + 2
    warm = CHECKPOINTS // 4
    # a file or three more are open while one is written, so the least of many samples counts
    assert min(watching.handles[-warm:]) <= min(watching.handles[:warm])
    assert max(watching.threads[warm:]) <= max(watching.threads[:warm])
    # a leak of 150 checkpoints would be a thousand times the allowance; an import or a buffer comes once
    late = watching.memory[warm // 10 - 1 :]
    growth = [after - before for before, after in itertools.pairwise(late)]
    assert sum(growth) - max(growth) < 256 << 10
    assert len(watching.notes) < 10
    assert all(note.isprintable() and len(note) < 200 for note in watching.notes)
    artifact = Artifact.open(tmp_path / "vae", "vae")
    assert files_beside_the_kept_state(artifact) == {
        "metrics.parquet", "tokenizer.json", "vae/config.json", "vae/model.safetensors",
    }  # fmt: skip
    assert len(list((tmp_path / "vae/checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_the_log_of_a_long_run_without_a_terminal_is_short_plain_lines(tmp_path: Path) -> None:
    """A line of progress every ten seconds, not one a step; no carriage returns, no escapes."""
    import subprocess

    from tests.conftest import cola_command
    from tests.stages.conftest import assignments

    tokens = make_tokens(tmp_path, documents=60)
    settings = vae_settings(
        steps=CHECKPOINTS, checkpoint_every=1, validate_every=100, batch_size=1, keep_last=1
    )
    command = ["train", "vae", str(tokens), "-o", str(tmp_path / "vae"), "--device", "cpu"]
    done = subprocess.run(
        cola_command(*command, *assignments(settings)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) < 40
    assert all(line.isprintable() and len(line) < 300 for line in lines)
    assert sum("validation loss" in line for line in lines) == 2
    assert any(f"{CHECKPOINTS}/{CHECKPOINTS}" in line for line in lines)
