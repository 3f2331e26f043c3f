"""Near-duplicates: against the exact index of all pairs, in any number of shards, killed or not."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cola_cli.artifacts import Artifact
from cola_cli.corpus import near_duplicates
from cola_cli.corpus.near_duplicates import SHINGLE, SLOTS, signature
from cola_cli.corpus.tokenizer import load_tokenizer
from tests.conftest import Run, content
from tests.stages.killing import kill_until_done

THRESHOLD, MARGIN = 0.8, 0.1
OPTIONS = ("--vocab-size", 300, "--seq-len", 64, "--near-duplicates", THRESHOLD)
PARTS = ("--set", "part_bytes=20000", "--workers", 1)


def shingles(text: str) -> set[bytes]:
    """All runs of bytes of a text."""
    data = text.encode()
    return {data[n : n + SHINGLE] for n in range(max(1, len(data) - SHINGLE + 1))}


def index(a: set[bytes], b: set[bytes]) -> float:
    """Of Jaccard."""
    both = len(a & b)
    return both / (len(a) + len(b) - both)


def families(count: int) -> list[str]:
    """Texts, each followed later by versions of it in which ever more words are others."""
    source = random.Random(3)
    words = ["".join(source.choices("etaoinshrdlu", k=2 + n % 7)) for n in range(3000)]
    made = []
    for family in range(count):
        first = source.choices(words, k=source.randint(20, 400))
        for changes in (0, 1, 2, 3, 5, 10, 20, 40):
            version = list(first)
            for place in source.sample(range(len(first)), min(len(first), changes)):
                version[place] = source.choice(words)
            made.append((source.random() + changes / 20, f"{family} {' '.join(version)}"))
    return [text for _, text in sorted(made)]


def write(folder: Path, texts: list[str]) -> None:
    """A corpus of two files."""
    (folder / "corpus").mkdir()
    half = len(texts) // 2
    for name, some in (("a", texts[:half]), ("b", texts[half:])):
        lines = [json.dumps({"text": text}) + "\n" for text in some]
        (folder / f"corpus/{name}.jsonl").write_text("".join(lines))


def kept(tokens: Path) -> set[str]:
    """The texts of the documents of an artifact of tokens."""
    artifact = Artifact.open(tokens, "tokens")
    tokenizer = load_tokenizer(artifact.file("tokenizer.json"))
    found = set()
    for part in artifact.parts:
        rows = pq.read_table(artifact.part_file(part.index)).to_pylist()
        document: list[int] = []
        for token in (token for row in rows for token in row["tokens"][: row["length"]]):
            if token == tokenizer.end_of_text_id:
                found.add(tokenizer.decode(document))
                document = []
            else:
                document.append(token)
    return found


def test_what_is_left_out_resembles_an_earlier_document_by_the_exact_index(
    cola: Run, tmp_path: Path
) -> None:
    texts = families(20)
    write(tmp_path, [*texts, texts[7]])
    said = cola("tokenize", "corpus", "-o", "tokens", *OPTIONS, *PARTS, "--json").stdout
    statistics = json.loads(said)["statistics"]
    sets = [shingles(text) for text in texts]
    left, sure = kept(tmp_path / "tokens"), 0
    for number, text in enumerate(texts):
        most = max((index(sets[number], sets[n]) for n in range(number)), default=0.0)
        if abs(most - THRESHOLD) > MARGIN:
            sure += 1
            assert (text in left) == (most < THRESHOLD), (text[:40], most)
    assert sure > 0.7 * len(texts)
    assert 30 < statistics["near_duplicates"] == len(texts) - len(left)
    assert (statistics["documents"], statistics["duplicates"]) == (len(left), 1)


def test_an_estimate_is_the_index_also_of_a_text_that_is_longer_than_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = random.Random(1)
    first, second, third = ("".join(source.choices("abcdefghij ", k=9000)) for _ in range(3))
    a, b = first + second, first + third
    made = [signature(text) for text in (a, b)]
    exact = index(shingles(a), shingles(b))
    assert abs(float((made[0] == made[1]).mean()) - exact) < 3 * (0.25 / SLOTS) ** 0.5
    monkeypatch.setattr(near_duplicates, "BLOCK", 1 << 11)
    assert np.array_equal(signature(a), made[0])
    assert not np.array_equal(signature("a"), signature("b"))


def test_shards_leave_out_what_one_run_does_and_so_does_a_run_that_was_killed(
    cola: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, families(40))
    command = ("tokenize", "corpus", *OPTIONS, *PARTS)
    cola(*command, "-o", "whole")
    for number in (2, 0, 1):
        cola(*command, "-o", "out", "--shard", f"{number}/3")
    cola(*command, "-o", "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    kill_until_done([*map(str, command), "-o", "killed"], "tokenizer", 3, 1.0, seed=4)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_what_is_added_is_compared_with_what_is_there(cola: Run, tmp_path: Path) -> None:
    texts = families(20)
    write(tmp_path, texts[:80])
    cola("tokenize", "corpus", "-o", "tokens", *OPTIONS, *PARTS)
    before = content(tmp_path / "tokens")
    (tmp_path / "corpus/c.jsonl").write_text(json.dumps({"text": f"{texts[0]}!"}) + "\n")
    said = json.loads(cola("tokenize", "corpus", "-o", "tokens", "--add", "--json").stdout)
    assert said["statistics"]["documents"] == len(kept(tmp_path / "tokens"))
    after = content(tmp_path / "tokens")
    assert [name for name in before if name.endswith(".parquet")] == [
        name for name in after if name.endswith(".parquet")
    ]


def test_without_the_library_nothing_is_begun(
    cola: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, families(2))
    monkeypatch.setitem(sys.modules, "rensa", None)  # type: ignore[arg-type]
    said = cola("tokenize", "corpus", "-o", "tokens", *OPTIONS, expect=2).stderr
    assert "pip install 'cola-cli[near-duplicates]'" in said
    assert not (tmp_path / "tokens").exists()
