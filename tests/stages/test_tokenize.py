"""`cola tokenize` as a user meets it: real files, real processes, killed for real."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cola_cli.artifacts import Artifact
from cola_cli.corpus.tokenizer import load_tokenizer
from tests.conftest import Run, cola_command, content

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "slept"]


def make_corpus(folder: Path, documents: int = 600, seed: int = 0) -> Path:
    """Files of random sentences, among them two duplicates and an empty record."""
    generator = random.Random(seed)
    texts = [
        f"{number}: " + " ".join(generator.choices(WORDS, k=generator.randint(5, 60)))
        for number in range(documents)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    half = documents // 2
    (folder / "a.txt").write_text("\n\n".join(texts[:half]) + "\n")
    records = [*texts[half:], texts[0], texts[half], "  "]
    lines = [json.dumps({"text": text}) + "\n" for text in records]
    (folder / "b.jsonl").write_text("".join(lines))
    return folder


SMALL = ("--vocab-size", 320, "--seq-len", 32, "--validation-fraction", 0.1)
PARTS = ("--set", "part_bytes=20000")


def test_no_token_is_lost_and_the_statistics_are_true(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    result = cola("tokenize", "corpus", "-o", "tokens", *SMALL, *PARTS, "--json", "--workers", 2)
    statistics = json.loads(result.stdout)["statistics"]
    assert (statistics["documents"], statistics["duplicates"], statistics["rejects"]) == (600, 2, 1)
    artifact = Artifact.open(tmp_path / "tokens", "tokens")
    tokenizer = load_tokenizer(artifact.file("tokenizer.json"))
    assert len(artifact.parts) >= 6
    texts: list[str] = []
    tokens = 0
    for part in artifact.parts:
        rows = pq.read_table(artifact.part_file(part.index)).to_pylist()
        ids = [token for row in rows for token in row["tokens"][: row["length"]]]
        assert all(len(row["tokens"]) == 32 for row in rows)
        assert all(t == tokenizer.pad_id for row in rows for t in row["tokens"][row["length"] :])
        tokens += len(ids)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        texts += [piece for piece in text.split("<|endoftext|>") if piece]
    assert tokens == statistics["tokens"]
    assert statistics["bytes"] == sum(len(text.encode()) for text in texts)
    original = (tmp_path / "corpus/a.txt").read_text().strip().split("\n\n")
    original += [
        json.loads(line)["text"] for line in (tmp_path / "corpus/b.jsonl").read_text().splitlines()
    ]
    assert sorted(texts) == sorted({text for text in original if text.strip()})
    assert 0 < statistics["splits"]["validation"]["documents"] < 120


def test_the_number_of_processes_changes_no_byte(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    for workers in (1, 2):
        cola("tokenize", "corpus", "-o", f"w{workers}", *SMALL, *PARTS, "--workers", workers)
    assert content(tmp_path / "w1") == content(tmp_path / "w2")


def test_shards_made_apart_and_merged_equal_one_run(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    cola("tokenize", "corpus", "-o", "whole", *SMALL, *PARTS, "--workers", 1)
    command = cola_command("tokenize", "corpus", "-o", "out", *SMALL, *PARTS, "--workers", 1)
    shards = [
        subprocess.Popen([*command, "--shard", f"{i}/3"], cwd=tmp_path, stderr=subprocess.DEVNULL)
        for i in range(3)
    ]
    shards[1].kill()  # its parts are left to the others' last run
    assert [shard.wait() for shard in shards] == [0, -signal.SIGKILL, 0]
    parts = {int(path.stem) for path in (tmp_path / "out/parts").glob("*.json")}
    assert {0, 1, 4, 5} <= parts
    merged = cola("tokenize", "corpus", "-o", "out", *SMALL, *PARTS, "--workers", 1)
    assert "600 documents" in merged.stdout
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    wrong = cola("tokenize", "corpus", "-o", "out", *SMALL, *PARTS, "--shard", "3/3", expect=2)
    assert "--shard 3/3" in wrong.stderr


def test_killed_at_random_moments_and_run_again_it_ends_in_the_same_bytes(
    cola: Run, tmp_path: Path
) -> None:
    make_corpus(tmp_path / "corpus", documents=1500)
    arguments = ("tokenize", "corpus", *SMALL, *PARTS, "--workers", 2, "--quiet")
    started = time.monotonic()
    cola(*arguments, "-o", "whole")
    duration = time.monotonic() - started
    generator = random.Random(os.getpid())
    kills = 0
    for _ in range(5):
        process = subprocess.Popen(
            cola_command(*arguments, "-o", "killed"), cwd=tmp_path, start_new_session=True
        )
        try:
            process.wait(generator.uniform(0.1, 0.9) * duration)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            process.wait()
    assert kills
    cola(*arguments, "-o", "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    whole, killed = (Artifact.open(tmp_path / name).manifest for name in ("whole", "killed"))
    assert killed.statistics == whole.statistics
    assert cola("verify", "killed").stdout.startswith("killed: complete")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_it_safely(tmp_path: Path, number: signal.Signals, code: int) -> None:
    make_corpus(tmp_path / "corpus", documents=20_000)
    process = subprocess.Popen(
        cola_command("tokenize", "corpus", "-o", "tokens", *SMALL, *PARTS, "--workers", 1),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("tokens/parts/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Run the same command again" in errors
    assert "Traceback" not in errors


def test_a_finished_run_is_up_to_date_without_torch(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", documents=50)
    cola("tokenize", "corpus", "-o", "tokens", *SMALL)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "tokens").rglob("*")}
    assert "up to date" in cola("tokenize", "corpus", "-o", "tokens", *SMALL).stdout
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "tokens").rglob("*")} == before


def test_a_changed_setting_or_text_is_a_conflict_that_names_it(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", documents=50)
    cola("tokenize", "corpus", "-o", "tokens", *SMALL)
    before = content(tmp_path / "tokens")
    result = cola("tokenize", "corpus", "-o", "tokens", *SMALL, "--seq-len", 64, expect=3)
    assert "seq_len: 32 -> 64" in result.stderr
    with (tmp_path / "corpus/a.txt").open("a") as stream:
        stream.write("\nmore\n")
    assert "input corpus" in cola("tokenize", "corpus", "-o", "tokens", *SMALL, expect=3).stderr
    assert content(tmp_path / "tokens") == before
    cola("tokenize", "corpus", "-o", "tokens", *SMALL, "--overwrite")
    assert content(tmp_path / "tokens") != before


def test_a_given_tokenizer_is_used(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", documents=50)
    cola("tokenize", "corpus", "-o", "first", *SMALL)
    given = tmp_path / "first/tokenizer.json"
    cola("tokenize", "corpus", "-o", "second", "--tokenizer", given, "--seq-len", 32)
    assert (tmp_path / "second/tokenizer.json").read_bytes() == given.read_bytes()
    result = cola(
        "tokenize", "corpus", "-o", "x", "--tokenizer", given, "--vocab-size", 999, expect=2
    )
    assert "exclude each other" in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("short.txt", "tiny", "less than one sequence of 32"),
        ("blank.txt", "\n \n\n", "the corpus holds no text"),
        ("bad.jsonl", '{"text": "a"}\n{"text"', "bad.jsonl, line 2 is not valid JSON"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_bad_input(
    cola: Run, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    result = cola("tokenize", name, "-o", "tokens", *SMALL, expect=4)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_setting_suggests_the_nearest(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", documents=5)
    result = cola("tokenize", "corpus", "-o", "t", "--set", "seq_length=9", expect=2)
    assert "Did you mean seq_len?" in result.stderr
