"""Kill a real `cola` process again and again until its stage is done, and compare with a quiet run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cola_cli.artifacts.manifest import read_manifest
from cola_cli.training.metrics import TIMES
from tests.conftest import cola_command


def kill_until_done(arguments: list[str], begun: str, kills: int, span: float, seed: int) -> None:
    """Run `cola` until it succeeds.

    `kills` times the process gets SIGKILL (or, every third time, SIGTERM) after `begun` stands on its
    stderr: the first time at once, so that one kill at least hits even where the stage takes no time,
    then at random moments within `span` seconds.
    """
    source = random.Random(seed)
    for turn in range(kills):
        process = subprocess.Popen(
            cola_command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if begun in line:
                break
        time.sleep(source.random() * span if turn else 0)
        process.send_signal(signal.SIGTERM if turn % 3 == 2 else signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL, 128 + signal.SIGTERM)
        if process.returncode == 0:
            assert turn, f"the stage was over when {begun!r} was read: nothing was killed"
            return
    last = subprocess.run(
        cola_command(*arguments), capture_output=True, text=True, env=os.environ.copy()
    )
    assert last.returncode == 0, last.stderr


def assert_same_metrics(one: Path, other: Path) -> None:
    """The tables are equal but for the columns of times."""
    tables = [pq.read_table(path / "metrics.parquet") for path in (one, other)]
    kept = [table.drop_columns([n for n in TIMES if n in table.column_names]) for table in tables]
    assert kept[0].num_rows > 1
    assert kept[0].equals(kept[1])


def assert_same_manifest(one: Path, other: Path) -> None:
    """The manifests are equal but for times, the digests of files with times, and the threads' origin."""
    documents: list[dict[str, Any]] = []
    for path in (one, other):
        document = read_manifest(path).model_dump(mode="json")
        for name in ("seconds", "digest"):
            del document[name]
        document["files"] = [f for f in document["files"] if f["path"] != "metrics.parquet"]
        documents.append(document)
    assert documents[0] == documents[1]
