"""Artifacts at az://, in the store that Azurite is (`npm install -g azurite`), and at gs://.

For the latter the server of these tests speaks what is documented of Google's XML API.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from cola_cli.artifacts import stores
from cola_cli.artifacts.stores import Changed, Place
from tests.conftest import Run, content
from tests.ports import free_port
from tests.stores.conftest import BUCKET, TOKENIZE, Shelf, needs_a_server

pytestmark = pytest.mark.slow
# the account that everybody's Azurite has
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def make_container(endpoint: str) -> None:
    """Ask for a container, signed with the account's key (Azure's "Shared Key" rules)."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    lines += [f"/{ACCOUNT}/{ACCOUNT}/{BUCKET}", "restype:container"]
    signed = hmac.digest(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}"
    address = f"{endpoint}/{BUCKET}?restype=container"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers)).close()


def start_azure(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Azurite, which says nothing."""
    if shutil.which("azurite-blob") is None:
        pytest.skip("needs azurite")
    return subprocess.Popen(
        ["azurite-blob", "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobPort", str(port),
         "--location", str(folder / "azurite")],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a container, which this process may use."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", endpoint)
    with contextlib.ExitStack() as ends:
        server = start_azure(tmp_path, port)
        ends.callback(server.wait)
        ends.callback(server.kill)
        for _ in range(300):
            with contextlib.suppress(ConnectionError, urllib.error.URLError):
                make_container(endpoint)
                break
            time.sleep(0.1)
        yield f"az://{BUCKET}"


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket, which this process may use."""
    with contextlib.closing(Shelf(tmp_path / "shelf", GOOGLE="1")) as shelf:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", shelf.url)
        yield f"gs://{BUCKET}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache for each test, and no connection of another."""
    pytest.importorskip("obstore")
    monkeypatch.setenv("COLA_CACHE", str(tmp_path / "cache"))
    stores._store.cache_clear()


@pytest.fixture(params=["azure", pytest.param("google", marks=needs_a_server)])
def bucket(request: pytest.FixtureRequest) -> str:
    """An address of either kind."""
    return str(request.getfixturevalue(request.param))


def test_tokens_in_a_bucket_are_those_on_a_disk(
    bucket: str, corpus: Path, cola: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = f"{bucket}/run/tokens"
    cola("tokenize", corpus, "-o", tmp_path / "tokens", *TOKENIZE)
    cola("tokenize", corpus, "-o", at, *TOKENIZE)
    monkeypatch.setenv("COLA_CACHE", str(tmp_path / "of-another-machine"))
    assert "up to date" in cola("tokenize", corpus, "-o", at, *TOKENIZE).stdout
    cola("verify", at)
    copy = stores.place_of(at)
    assert copy is not None
    here, there = content(tmp_path / "tokens"), content(copy)
    parts = {name for name in here if name.startswith("parts/") and name.endswith("parquet")}
    assert len(parts) > 2
    assert {name: there.get(name) for name in parts} == {name: here[name] for name in parts}
    changed = [*TOKENIZE, "--set", "seq_len=16"]
    assert "seq_len: 32 -> 16" in cola("tokenize", corpus, "-o", at, *changed, expect=3).stderr
    cola("tokenize", corpus, "-o", at, *changed, "--overwrite")


def test_who_comes_second_is_refused(bucket: str) -> None:
    place = Place(f"{bucket}/one")
    first = place.put(b"first", "")
    with pytest.raises(Changed):
        place.put(b"second", "")
    later = place.put(b"later", first)
    with pytest.raises(Changed):
        place.put(b"second", first)
    assert place.get() == (b"later", later)


def test_a_corpus_in_a_bucket(bucket: str, corpus: Path, cola: Run, tmp_path: Path) -> None:
    Place(f"{bucket}/texts/corpus.txt").put(corpus.read_bytes())
    cola("tokenize", f"{bucket}/texts/*.txt", "-o", tmp_path / "there", *TOKENIZE)
    cola("tokenize", corpus, "-o", tmp_path / "here", *TOKENIZE)
    here, there = content(tmp_path / "here"), content(tmp_path / "there")
    assert here.keys() == there.keys()
    assert all(here[name] == there[name] for name in here if name.endswith(".parquet"))
