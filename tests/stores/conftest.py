"""A local S3 server with a bucket, and `cola` in a process that knows of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cola_cli.training.metrics import TIMES
from tests.conftest import cola_command
from tests.ports import free_port
from tests.stages.conftest import assignments as flags
from tests.stages.conftest import made_up_text, vae_settings
from tests.stages.conftest import prior_settings as settings_of_a_prior
from tests.stores import KEY

needs_a_server = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("obstore", "moto", "flask_cors")),
    reason="needs obstore and moto",
)

BUCKET = "shelf"
VAE, PRIOR = flags(vae_settings()), flags(settings_of_a_prior())
TOKENIZE = ("--set", "vocab_size=300", "--set", "seq_len=32", "--set", "part_bytes=4000")
TOKENIZE = (*TOKENIZE, "--set", "workers=1", "--set", "validation_fraction=0.2")


class Shelf:
    """The server, and how to run `cola` against it; `variables` are of both."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = os.environ | {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "of-the-test",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
            "AWS_REGION": "us-east-1",
            "COLA_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stores.server", str(self.port)],
            cwd=Path(__file__).parents[2],
            env=os.environ | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            with contextlib.suppress(OSError):
                self.bucket("PUT", BUCKET)
                return
            time.sleep(0.1)
        raise TimeoutError("the server does not answer")

    def bucket(self, method: str, path: str) -> bytes:
        """Ask the server without a library."""
        request = urllib.request.Request(
            f"{self.url}/{path}", method=method, headers={"Authorization": KEY}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def start(self, *arguments: object, **variables: str) -> subprocess.Popen[str]:
        """`cola` in a process of its own."""
        return subprocess.Popen(
            cola_command(*arguments),
            env={n: value for n, value in (self.environment | variables).items() if value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cola(
        self, *arguments: object, expect: int | None = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `cola`; `expect` is its exit code, None for any."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate()
        if expect is not None:
            assert process.returncode == expect, f"{arguments}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def content(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix of the bucket."""
        store = self._store()
        keys = [one["path"] for batch in store.list(prefix) for one in batch]
        return {key.removeprefix(f"{prefix}/"): bytes(store.get(key).bytes()) for key in keys}

    def written(self, prefix: str) -> dict[str, Any]:
        """When every object below a prefix was written, to the second."""
        found = [one for batch in self._store().list(prefix) for one in batch]
        return {one["path"]: one["last_modified"] for one in found}

    def _store(self) -> Any:
        from obstore.store import S3Store

        return S3Store(
            BUCKET,
            endpoint=self.url,
            region="us-east-1",
            access_key_id="of-the-test",
            secret_access_key="secret-of-the-test",
            client_options={"allow_http": True},
        )

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()


def stages(at: str, corpus: Path) -> list[list[str]]:
    """The commands of the five stages, their artifacts below `at`."""
    return [
        ["tokenize", str(corpus), "-o", f"{at}/tokens", *TOKENIZE],
        ["train", "vae", f"{at}/tokens", "-o", f"{at}/vae", "--device", "cpu", *VAE],
        ["encode", f"{at}/tokens", "--vae", f"{at}/vae", "-o", f"{at}/latents", "--device", "cpu"],
        ["train", "prior", f"{at}/latents", "-o", f"{at}/prior", "--device", "cpu", *PRIOR],
        ["sample", f"{at}/prior", "--prompt", "Anna sees", "-n", "16", "--set", "steps=2",
         "-o", f"{at}/samples", "--device", "cpu"],
    ]  # fmt: skip


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(made_up_text(600))
    return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """The server."""
    with contextlib.closing(Shelf(tmp_path_factory.mktemp("shelf"))) as found:
        yield found


@pytest.fixture(scope="session")
def local(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of the five stages on a disk."""
    folder = tmp_path_factory.mktemp("local")
    for command in stages(str(folder), corpus):
        process = subprocess.run(
            cola_command(*command),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
    return folder


def same_as_local(shelf: Shelf, prefix: str, local: Path) -> None:
    """Every object of an artifact is byte for byte the file of the local run; the manifest but for times."""
    folder = local / prefix.rpartition("/")[2]
    found = shelf.content(prefix)
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert found.keys() == files.keys()
    for name, data in found.items():
        if name == "metrics.parquet":
            tables = [
                pq.read_table(pa.BufferReader(one)) for one in (data, files[name].read_bytes())
            ]
            kept = [t.drop_columns([n for n in TIMES if n in t.column_names]) for t in tables]
            assert kept[0].equals(kept[1])
        elif name == "manifest.json":
            assert without_times(data) == without_times(files[name].read_bytes())
        elif name != ".lock":
            assert data == files[name].read_bytes(), name


def without_times(manifest: bytes) -> dict[str, Any]:
    """A manifest without what two runs differ in, beside where the inputs were."""
    found = json.loads(manifest)
    del found["seconds"], found["digest"]
    found["environment"].pop("fetched", None)
    found["environment"].pop("corpus", None)
    found["files"] = [one for one in found["files"] if one["path"] != "metrics.parquet"]
    return found
