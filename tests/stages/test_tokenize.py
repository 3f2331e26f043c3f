"""`cola tokenize` as a user meets it: real files, real processes, killed for real."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers

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


def test_a_process_starts_without_what_takes_long(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    (tmp_path / "slow").mkdir()
    for name in ("torch", "pandas"):  # pyarrow would import pandas at its first array
        (tmp_path / f"slow/{name}.py").write_text("import os; os._exit(9)")
    variables = os.environ | {"PYTHONPATH": str(tmp_path / "slow")}
    command = ("tokenize", "corpus", "-o", "tokens", *SMALL, "--workers", 1)
    for shard in ("0/2", "1/2", None):
        cola(*command, *(["--shard", shard] if shard else []), env=variables)


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
    assert {0, 1} <= parts
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
    cola(*arguments, "-o", "whole")
    generator = random.Random(os.getpid())
    kills = 0

    def files() -> int:
        return sum(1 for _ in tmp_path.glob("killed/**/*.parquet"))

    for _ in range(5):
        goal = files() + generator.randint(1, 8)
        process = subprocess.Popen(
            cola_command(*arguments, "-o", "killed"), cwd=tmp_path, start_new_session=True
        )
        while process.poll() is None and files() < goal:
            time.sleep(0.005)
        if process.poll() is None:
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
    make_corpus(tmp_path / "corpus", documents=100_000)
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
    _, errors = process.communicate()
    assert process.returncode == code
    assert "Run the same command again" in errors
    assert "Traceback" not in errors


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
    assert "cannot be combined" in result.stderr


def test_special_tokens_of_a_given_tokenizer_are_found_or_added_and_recorded(
    cola: Run, tmp_path: Path
) -> None:
    make_corpus(tmp_path / "corpus", documents=50)
    foreign = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "cat": 2, "dog": 3}, "[UNK]"))
    foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign.enable_padding(length=99)
    foreign.enable_truncation(3)
    foreign.save(str(tmp_path / "foreign.json"))
    cola("tokenize", "corpus", "-o", "tokens", "--tokenizer", "foreign.json", "--seq-len", 32)
    artifact = Artifact.open(tmp_path / "tokens", "tokens")
    found = artifact.manifest.statistics
    assert (found["end_of_text_id"], found["pad_id"], found["vocab_size"]) == (1, 4, 5)
    rows = pq.read_table(artifact.part_file(0)).to_pylist()
    ids = [token for row in rows for token in row["tokens"][: row["length"]]]
    assert ids.count(1) == artifact.parts[0].statistics["documents"]
    words = sum(len(line.split()) for line in (tmp_path / "corpus/a.txt").read_text().splitlines())
    assert found["tokens"] > words  # neither cut nor filled up by what the tokenizer was set to


def test_two_spellings_of_a_character_are_one_after_normalisation(
    cola: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("caf\u00e9 au lait\n\ncafe\u0301 au lait\n")
    arguments = ("tokenize", "a.txt", "--vocab-size", 260, "--seq-len", 4, "--json")
    options = ("--validation-fraction", 0)
    counts = []
    for form in ("none", "nfc"):
        run = cola(*arguments, *options, "-o", form, "--normalize", form)
        statistics = json.loads(run.stdout)["statistics"]
        counts.append((statistics["documents"], statistics["duplicates"]))
    assert counts == [(2, 0), (1, 1)]


READ_ALL = """
import sys
from pathlib import Path
from cola_cli.machine.threads import peak_memory
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.tokenize import tokenize
settings = TokenizeSettings(vocab_size=300, sample_bytes=1 << 16, workers=1)
tokenize([sys.argv[1]], Path(sys.argv[2]), settings, shard=(9_999, 10_000))
print(peak_memory())
"""


@pytest.mark.xdist_group("memory")
def test_ten_times_the_corpus_is_read_in_no_more_memory(tmp_path: Path) -> None:
    line = " ".join(WORDS * 2_000)
    peaks = []
    for count in (300, 3_000):  # 27 MB and 270 MB of text
        name = tmp_path / f"{count}.jsonl.zst"
        with name.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as packed:
            for number in range(count):
                packed.write(f'{{"text": "{number} {line}"}}\n'.encode())
        command = [sys.executable, "-c", READ_ALL, str(name), str(tmp_path / f"{count}")]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(result.stdout))
    assert peaks[1] < 1.2 * peaks[0]


def test_a_process_that_is_killed_for_its_memory_is_said(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", documents=6_000)
    command = cola_command("tokenize", "corpus", "-o", "tokens", *SMALL, *PARTS, "--workers", 2)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("tokens/parts/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [
        pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "a tokenizing process was killed" in errors
    assert "fewer --workers" in errors


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.txt", "", "the corpus holds no text"),
        ("latin.md", b"fine\n\nb\xe4d\n", "latin.md, line 3 is not UTF-8"),
        ("other.jsonl", '{"body": "a"}\n', "line 1 has no field 'text'"),
        ("cut.txt.gz", gzip.compress(b"text " * 999, mtime=0)[:-9], "cut.txt.gz is truncated"),
        ("cut.txt.zst", zstandard.compress(b"text " * 999)[:-9], "cut.txt.zst is truncated"),
        ("cut.parquet", b"PAR1 and no more", "cut.parquet is not a whole Parquet file"),
        ("short.txt", "tiny", "less than one sequence of 32"),
        (
            "null.jsonl",
            '{"text": "a"}\n{"text": null}\n',
            "1 documents, 0 duplicates, 1 empty or null",
        ),
        (
            "nulls.jsonl",
            '{"text": null}\n' * 3,
            "no text (0 documents, 0 duplicates, 3 empty or null)",
        ),
        ("blank.txt", "\n \n\n", "the corpus holds no text"),
        ("bad.jsonl", '{"text": "a"}\n{"text"', "bad.jsonl, line 2 is not valid JSON"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_bad_input(
    cola: Run, tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = cola("tokenize", name, "-o", "tokens", *SMALL, expect=4)
    assert message in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("      "), "no remedy"
    assert "Traceback" not in result.stderr


def test_once_the_bad_line_is_mended_the_same_command_just_runs(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", documents=50)
    good = (tmp_path / "corpus/b.jsonl").read_text()
    (tmp_path / "corpus/b.jsonl").write_text(good + '{"text"')
    cola("tokenize", "corpus", "-o", "tokens", *SMALL, expect=4)
    (tmp_path / "corpus/b.jsonl").write_text(good)
    cola("tokenize", "corpus", "-o", "tokens", *SMALL)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_none_is_bad_input(cola: Run, tmp_path: Path, text: str) -> None:
    make_corpus(tmp_path / "corpus", documents=5)
    (tmp_path / "t.json").write_text(text)
    result = cola("tokenize", "corpus", "-o", "tokens", "--tokenizer", "t.json", expect=4)
    assert "t.json is not a tokenizer" in result.stderr


def test_an_unknown_setting_suggests_the_nearest(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", documents=5)
    result = cola("tokenize", "corpus", "-o", "t", "--set", "seq_length=9", expect=2)
    assert "Did you mean seq_len?" in result.stderr
