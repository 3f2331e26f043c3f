"""Corpora on a hub: found at a commit that is recorded, fetched once, resumable."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cola_cli.artifacts.manifest import read_manifest
from tests.conftest import cola_command, content
from tests.stages.conftest import made_up_text
from tests.weights.hub_server import CONVERTED, Hub, serving
from tests.weights.test_hub import Command, cola  # noqa: F401  (a fixture)

pytest.importorskip("huggingface_hub")
REPO = "org/texts"
SIZES = (
    "--vocab-size",
    300,
    "--seq-len",
    32,
    "--workers",
    1,
    "--set",
    "part_bytes=4000",
    "--quiet",
)


def parquet(seed: int) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": made_up_text(200, seed).split("\n\n")}), stream)
    return stream.getvalue()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        files = {f"data/train-{n}.parquet": parquet(n) for n in range(2)}
        hub.commit(REPO, files | {"README.md": b"# about"})
        yield hub


def test_the_commit_is_recorded_and_what_lies_there_is_read_once(
    hub: Hub,
    cola: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    for n in range(2):
        (tmp_path / f"train-{n}.parquet").write_bytes(
            hub.repositories[REPO][0][f"data/train-{n}.parquet"]
        )
    cola("tokenize", "train-*.parquet", "-o", "local", *SIZES)
    names = [
        f"hf://datasets/{REPO}/data/*.parquet",
        f"hf://datasets/{REPO}",
        f"hf://datasets/{REPO}@{CONVERTED}",
    ]
    for number, name in enumerate(names):
        cola("tokenize", name, "-o", f"t{number}", *SIZES)
        made, local = (content(tmp_path / one) for one in (f"t{number}", "local"))
        texts = [one for one in local if one.endswith(".parquet")]  # records name the places
        assert [made[one] for one in texts] == [local[one] for one in texts]
    recorded = read_manifest(tmp_path / "t0").environment["corpus"]
    commit = hub.digest(REPO, 0)
    assert [*recorded] == [
        f"hf://datasets/{REPO}@{commit}/data/train-{n}.parquet" for n in range(2)
    ]
    read = len([line for line in hub.requests if "/resolve/" in line])
    assert "up to date" in cola("tokenize", names[0], "-o", "t0", *SIZES[:-1]).stdout
    assert len([line for line in hub.requests if "/resolve/" in line]) == read


def test_a_corpus_that_moved_on_is_another_and_its_old_commit_is_still_there(
    hub: Hub,
    cola: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    name = f"hf://datasets/{REPO}"
    cola("tokenize", name, "-o", "t", *SIZES)
    before = hub.digest(REPO, 0)
    hub.commit(REPO, {"data/train-1.parquet": parquet(7)})
    assert "corpus" in cola("tokenize", name, "-o", "t", *SIZES, expect=3).stderr
    pinned = f"hf://datasets/{REPO}@{before}"
    assert "up to date" in cola("tokenize", pinned, "-o", "t", *SIZES[:-1]).stdout


@pytest.mark.slow
def test_a_run_killed_over_the_hub_ends_in_the_same_bytes_though_the_hub_has_moved_on(
    hub: Hub,
    cola: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    before = hub.digest(REPO, 0)
    name = f"hf://datasets/{REPO}@{before}"
    cola("tokenize", name, "-o", "whole", *SIZES)
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "other"), "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    command = cola_command("tokenize", name, "-o", "killed", *SIZES)
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    while not list(tmp_path.glob("killed/parts/*.json")):
        assert process.poll() is None, "it finished before it could be killed"
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert read_manifest(tmp_path / "killed").status == "incomplete"
    hub.commit(REPO, {"data/train-0.parquet": parquet(7)})
    cola("tokenize", name, "-o", "killed", *SIZES)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    made = read_manifest(tmp_path / "killed")
    assert all(f"@{before}/" in one for one in made.environment["corpus"])
    cola("tokenize", f"hf://datasets/{REPO}", "-o", "moved", *SIZES)
    assert read_manifest(tmp_path / "moved").fingerprint != made.fingerprint


@pytest.mark.parametrize("name", ["org/nothing", f"{REPO}@nowhere"])
def test_what_is_not_there_is_said(hub: Hub, cola: Command, name: str) -> None:  # noqa: F811
    said = cola("tokenize", f"hf://datasets/{name}", "-o", "t", "--json", *SIZES, expect=4).stderr
    error = json.loads(said.splitlines()[-1])["error"]
    assert name.split("@")[0] in json.dumps(error)
