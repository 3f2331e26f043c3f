"""Artifacts in an object store: what is made there, who may write, what goes wrong, and the copies here."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cola_cli.artifacts import lease, mirror, stores
from cola_cli.artifacts.stores import Place, address_of, place_of, with_addresses
from cola_cli.errors import InputError, UsageError
from tests.conftest import Run
from tests.stores.conftest import TOKENIZE, Shelf, needs_a_server, same_as_local, stages

pytestmark = needs_a_server
LONG = ("--set", "train.steps=4000", "--set", "train.checkpoint_every=40")


@pytest.fixture
def here(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This process knows of the server, and has a cache of its own."""
    for name, value in shelf.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "_listed", {})
    monkeypatch.setattr(mirror, "_used", None)
    monkeypatch.setattr(mirror, "_ahead", {})
    stores._store.cache_clear()
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokens(shelf: Shelf, corpus: Path) -> str:
    """An artifact of tokens in the store."""
    shelf.cola(*stages("s3://shelf/made", corpus)[0])
    return "s3://shelf/made/tokens"


@pytest.mark.slow
def test_the_five_stages_make_what_they_make_on_a_disk(
    shelf: Shelf, corpus: Path, local: Path
) -> None:
    for command in stages("s3://shelf/run", corpus):
        shelf.cola(*command)
    for name in ("tokens", "vae", "latents", "prior", "samples"):
        same_as_local(shelf, f"run/{name}", local)
        manifest = shelf.content(f"run/{name}")["manifest.json"].decode()
        assert shelf.environment["COLA_CACHE"] not in manifest
        assert "secret-of-the-test" not in manifest
    another = {"COLA_CACHE": shelf.environment["COLA_CACHE"] + "-of-another-machine"}
    for command in stages("s3://shelf/run", corpus):
        assert "up to date" in shelf.cola(*command, **another).stdout
    table = shelf.cola("status", "s3://shelf/run", **another).stdout
    assert table.count("complete") == 5
    assert "s3://shelf/run/prior" in table
    assert "cache" not in table


def test_tokens_in_a_store_are_those_on_a_disk(
    shelf: Shelf, tokens: str, corpus: Path, tmp_path: Path
) -> None:
    shelf.cola("tokenize", corpus, "-o", tmp_path / "tokens", *TOKENIZE)
    same_as_local(shelf, "made/tokens", tmp_path)


def test_a_corpus_in_the_store_is_the_one_on_a_disk(
    shelf: Shelf, here: Path, tokens: str, corpus: Path, tmp_path: Path
) -> None:
    Place("s3://shelf/texts/corpus.txt").put(corpus.read_bytes())
    shelf.cola("tokenize", "s3://shelf/texts/*.txt", "-o", tmp_path / "tokens", *TOKENIZE)
    parts = {n: one for n, one in shelf.content("made/tokens").items() if n.endswith(".parquet")}
    assert len(parts) > 2
    assert parts == {n: (tmp_path / "tokens" / n).read_bytes() for n in parts}


def test_who_reads_sees_every_byte(cola: Run, here: Path, tokens: str) -> None:
    found = json.loads(cola("verify", tokens, "--json").stdout)
    assert "damaged" not in json.dumps(found)
    counted = cola("sql", "select count(*) from parts", tokens).stdout
    assert int(counted.split()[-1]) > 100
    assert json.loads(cola("inspect", tokens, "--json").stdout)["path"] == tokens
    part = place_of(f"{tokens}/parts/00001.parquet")
    assert part is not None
    whole = part.read_bytes()
    # a copy that is damaged is fetched again, an object that is damaged is found
    part.write_bytes(whole[:-1] + b"!")
    cola("verify", tokens)
    place = Place.of(part)
    assert place is not None
    place.put(whole[:-1] + b"!")
    assert "00001.parquet is damaged" in cola("verify", tokens, expect=5).stdout
    place.put(b"foreign")
    place.put(whole)
    other = Place(f"{tokens}/note.txt")
    other.put(b"foreign")
    assert "note.txt is foreign" in cola("verify", tokens, expect=None).stdout
    other.delete()
    cola("verify", tokens)


def test_an_artifact_is_replaced_and_repaired_in_the_store(
    shelf: Shelf, cola: Run, here: Path, corpus: Path, tmp_path: Path
) -> None:
    at = "s3://shelf/replaced/tokens"
    cola("tokenize", corpus, "-o", at, *TOKENIZE)
    changed = [*TOKENIZE, "--set", "seq_len=16"]
    assert "seq_len: 32 -> 16" in cola("tokenize", corpus, "-o", at, *changed, expect=3).stderr
    cola("tokenize", corpus, "-o", at, *changed, "--overwrite")
    cola("tokenize", corpus, "-o", tmp_path / "tokens", *changed)
    same_as_local(shelf, "replaced/tokens", tmp_path)
    Place(f"{at}/parts/00002.parquet").put(b"damaged")
    cola("verify", at, "--repair", expect=None)
    assert "parts/00002.json" not in shelf.content("replaced/tokens")
    cola("tokenize", corpus, "-o", at, *changed)
    same_as_local(shelf, "replaced/tokens", tmp_path)


def test_of_two_writers_one_wins_and_the_other_names_it(corpus: Path, tmp_path: Path) -> None:
    with contextlib.closing(Shelf(tmp_path, LATENCY="0.15")) as shelf:
        command = ["tokenize", corpus, "-o", "s3://shelf/two/tokens", *TOKENIZE]
        first = shelf.start(*command)
        _wait_for(lambda: b'"pid"' in shelf.content("two/tokens").get(".lock", b""))
        for cache in ("cache", "cache-of-another-machine"):
            second = shelf.cola(*command, expect=3, COLA_CACHE=str(tmp_path / cache))
            said = f"s3://shelf/two/tokens is being written by process {first.pid}"
            assert said in second.stderr
        first.communicate()
        assert first.returncode == 0


def test_the_lease_of_a_dead_holder_runs_out(
    cola: Run, here: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.5)
    at = "s3://shelf/elsewhere/tokens"
    lock = Place(f"{at}/.lock")
    holder = {"pid": 7, "host": "another", "command": "cola tokenize", "since": "today"}

    def held(until: float) -> bytes:
        return json.dumps({"holder": holder, "until": time.time() + until}).encode()

    lock.put(held(50))
    said = cola("tokenize", corpus, "-o", at, *TOKENIZE, expect=3).stderr
    assert "process 7 on another since today (cola tokenize)" in said
    lock.put(held(5000))
    assert "clock" in cola("tokenize", corpus, "-o", at, *TOKENIZE, expect=3).stderr
    # a live holder whose clock is behind renews what looks run out
    lock.put(held(-500))
    timer = threading.Timer(1.0, lambda: lock.put(held(-499)))
    timer.start()
    assert "clock" in cola("tokenize", corpus, "-o", at, *TOKENIZE, expect=3).stderr
    timer.join()
    cola("tokenize", corpus, "-o", at, *TOKENIZE)


def test_who_lost_the_lease_writes_nothing_more(here: Path) -> None:
    directory = place_of("s3://shelf/lost/tokens")
    assert directory is not None
    about = {"pid": os.getpid(), "host": "this", "command": "cola", "since": "today"}
    mine = lease.Lease(directory, about)
    with mine.held(0.0):
        theirs = json.dumps({"holder": about | {"host": "another"}, "until": time.time() + 60})
        Place(f"{address_of(directory)}/.lock").put(theirs.encode())
        mine._valid_until = 0.0  # as after a long sleep
        directory.mkdir(parents=True)
        (directory / "tokenizer.json").write_text("{}")
        with pytest.raises(Exception, match=r"taken over by process .* on another"):
            mirror.put(directory / "tokenizer.json")
    assert Place(f"{address_of(directory)}/.lock").get()[0] == theirs.encode()


def test_what_goes_wrong_is_told(shelf: Shelf, corpus: Path, tmp_path: Path) -> None:
    into = ["tokenize", str(corpus), "-o"]
    nowhere = {
        "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
    }
    cases: list[tuple[list[str], dict[str, str], int, str]] = [
        ([*into, "s3://shelf/x"], nowhere, 4, "no credentials"),
        ([*into, "s3://no-such-shelf/x"], {}, 4, "there is no bucket s3://no-such-shelf"),
        (["verify", "s3://no-such-shelf/x"], {}, 4, "there is no bucket s3://no-such-shelf"),
        (["verify", "s3://shelf/nothing"], {}, 4, "s3://shelf/nothing is not a directory"),
        ([*into, "s3:/shelf/x"], {}, 2, "not an address"),
        ([*into, "s3://shelf"], {}, 2, "is a bucket"),
        ([*into, "s3://shelf/x"], {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, 4, "cannot be used"),
    ]
    for command, variables, code, said in cases:
        result = shelf.cola(*command, expect=code, **variables)
        assert said in " ".join(result.stderr.replace("│", " ").split()), (command, result.stderr)
        assert "secret-of-the-test" not in result.stderr
    assert not shelf.content("x")


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("UNCONDITIONAL", 3, "no conditional puts"),
        ("SKEWED", 4, "the clock of this machine is off"),
    ],
)
def test_a_store_that_cannot_be_written_safely(
    fault: str, code: int, said: str, corpus: Path, tmp_path: Path
) -> None:
    with contextlib.closing(Shelf(tmp_path, **{fault: "1"})) as shelf:
        result = shelf.cola("tokenize", corpus, "-o", "s3://shelf/x", *TOKENIZE, expect=code)
        assert said in result.stderr


@pytest.mark.slow
def test_a_bucket_that_vanishes_in_the_middle(corpus: Path, tmp_path: Path) -> None:
    with contextlib.closing(Shelf(tmp_path)) as shelf:
        tokenize, train, *_ = stages("s3://shelf/run", corpus)
        shelf.cola(*tokenize)
        process = shelf.start(*train, *LONG)
        _wait_for(lambda: any("COMMITTED" in name for name in shelf.content("run/vae")))
        shelf.bucket("POST", "moto-api/reset")
        _, said = process.communicate(timeout=120)
        assert process.returncode == 4
        assert "there is no bucket s3://shelf" in said
        shelf.bucket("PUT", "shelf")
        shelf.cola(*tokenize)
        shelf.cola(*train)
        shelf.cola("verify", "s3://shelf/run")


def test_the_cache_stays_below_its_bound(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLA_CACHE_BYTES", "50000")
    monkeypatch.setattr(mirror, "FRESH_SECONDS", 0.0)
    folder = place_of("s3://shelf/bound/parts")
    assert folder is not None
    for number in range(20):
        Place(f"s3://shelf/bound/parts/{number:05d}.parquet").put(bytes([number]) * 10_000)
    unsaved = folder / "99999.parquet"
    folder.mkdir(parents=True)
    unsaved.write_bytes(b"of this machine alone")
    for number in [*range(20), 0]:
        path = mirror.fetch(folder / f"{number:05d}.parquet")
        assert path.read_bytes() == bytes([number]) * 10_000
        assert sum(one.stat().st_size for one in here.rglob("*.parquet")) <= 50_000
    assert unsaved.exists()


def test_the_next_window_is_fetched_ahead(
    cola: Run, here: Path, tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cola_cli.artifacts.kinds import Tokens
    from cola_cli.corpus.sequences import Sequences, Shuffled

    folder = place_of(tokens)
    assert folder is not None
    mirror.pull(folder)
    sequences = Sequences(Tokens.open(folder), "train")
    monkeypatch.setattr(Shuffled, "order", lambda self, epoch, window: np.arange(8) + 100 * window)
    Shuffled(sequences, 0, 8).read(range(4))
    place = int(np.searchsorted(sequences._starts, 100, "right")) - 1
    _wait_for((folder / sequences._parts[place].file).exists)
    assert len(list(folder.rglob("*.parquet"))) < len(sequences._parts)


def test_addresses_and_their_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLA_CACHE", str(tmp_path))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
    for scheme, kind in (("s3", "S3Store"), ("gs", "GCSStore"), ("az", "AzureStore")):
        place = place_of(f"{scheme}://shelf/run/tokens")
        assert place is not None
        assert address_of(place) == f"{scheme}://shelf/run/tokens"
        assert with_addresses(f"{place / 'x'} is") == f"{scheme}://shelf/run/tokens/x is"
        assert InputError(f"{place} is wrong.").problem == f"{scheme}://shelf/run/tokens is wrong."
        assert type(Place.of(place)._store).__name__ == kind  # type: ignore[union-attr]
    assert place_of("runs/s3/x") is None
    assert place_of("/s3://x") is None
    for wrong in (
        "s3:/b/x",
        "s3://",
        "S3://b/x",
        "s3://b//x",
        "az://b/../x",
        "s3://b/a\nb",
    ):
        with pytest.raises(UsageError, match="not an address"):
            place_of(wrong)


def test_azure_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    stores._store.cache_clear()
    with pytest.raises(InputError, match="no credentials") as told:
        Place("az://shelf/x").get()
    assert "AZURE_STORAGE_ACCOUNT_NAME" in told.value.remedy


def test_without_the_library(cola: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    monkeypatch.setenv("COLA_CACHE", str(tmp_path))
    assert "cola-cli[stores]" in cola("verify", "s3://shelf/x", expect=2).stderr


def _wait_for(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
