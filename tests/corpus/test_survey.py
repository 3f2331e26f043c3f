"""A corpus that many processes survey: cut anywhere, it holds the same documents, and is read once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cola_cli.artifacts import lock
from cola_cli.artifacts.lock import Claims
from cola_cli.artifacts.mirror import SCRATCH
from cola_cli.artifacts.verify import verify
from cola_cli.corpus import files
from cola_cli.corpus import survey as surveys
from cola_cli.corpus.documents import ChangedFile, Document, Range, read_documents
from cola_cli.corpus.sources import find_corpus
from cola_cli.corpus.survey import pieces_of
from cola_cli.errors import DamagedArtifact, InputError, OutputLocked
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages import tokenize as stage
from cola_cli.stages.run import Run
from cola_cli.stages.status import survey
from cola_cli.stages.tokenize import tokenize
from tests.conftest import content

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "z\u00fcrich", "\u65e5\u672c"]
BREAKS = ["\n\n", "\n\n\n", "\n \t\n", "\n\u3000\n", "\r\n\r\n", "\n"]
SMALL = TokenizeSettings(vocab_size=320, seq_len=16, part_bytes=2000, workers=1, sample_bytes=4000)


def texts(count: int, seed: int = 0) -> list[str]:
    """Short texts, some of them twice."""
    source = random.Random(seed)
    made = [" ".join(source.choices(WORDS, k=source.randint(1, 60))) for _ in range(count)]
    return [source.choice(made) if source.random() < 0.1 else text for text in made]


def by_ranges(path: Path, size: int) -> list[Document]:
    """The documents of a file that is read by ranges of so many bytes, or row groups."""
    whole = 99 if path.suffix == ".parquet" else path.stat().st_size
    found, lines = [], 0
    for start in range(0, whole, size):
        part = Range(start, start + size, first=1 + lines)
        found += read_documents(path, "text", "blank-line", part=part)
        lines += part.lines
    return found


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_file_cut_anywhere_holds_the_same_documents_in_the_same_places(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    for seed in range(6):
        source, made = random.Random(seed), texts(12, seed)
        if suffix == ".parquet":
            pq.write_table(pa.table({"text": made}), path, row_group_size=seed + 1)
        elif suffix == ".jsonl":
            lines = [
                json.dumps({"text": text}) + source.choice(["\n", "\r\n", "\n\n"]) for text in made
            ]
            path.write_bytes(source.choice(["", "\ufeff"]).encode() + "".join(lines).encode())
        else:
            start = source.choice(["", "\ufeff", "\n\n", " \n"])
            path.write_bytes((start + "".join(t + source.choice(BREAKS) for t in made)).encode())
        whole = list(read_documents(path, "text", "blank-line"))
        assert whole
        for size in (1, 2, 7, 50, 333, 10_000):
            assert by_ranges(path, size) == whole, (seed, size)


def test_a_bad_line_of_a_file_that_is_cut_is_named_by_its_number(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in texts(400)]
    lines[300] = '{"text"'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(Exception, match=r"a\.jsonl, line 301 is not valid JSON"):
        tokenize([str(tmp_path / "a.jsonl")], tmp_path / "out", SMALL)


def make_corpus(folder: Path) -> Path:
    """Small files, and files that are cut."""
    folder.mkdir()
    for number in range(6):
        (folder / f"s{number}.txt").write_text("\n\n".join(texts(3, number)))
    (folder / "blank.txt").write_text("\n" * 5000)
    (folder / "big.txt").write_text("\n\n".join(texts(120, 7)))
    (folder / "big.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in texts(120, 8))
    )
    pq.write_table(pa.table({"text": texts(120, 9)}), folder / "big.parquet", row_group_size=10)
    return folder


def test_shards_in_any_order_read_the_corpus_once_and_make_what_one_run_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    read, into = 0, files._Digested.readinto

    def counted(self: files._Digested, buffer: object) -> int:
        nonlocal read
        count = into(self, buffer)
        read += count
        return count

    monkeypatch.setattr(files._Digested, "readinto", counted)
    monkeypatch.setattr(files, "READ_BYTES", 256)
    whole = tokenize([str(corpus)], tmp_path / "whole", SMALL).statistics
    alone, read = read, 0
    for index in (3, 0, 4, 1):  # the last run takes over from 2
        tokenize([str(corpus)], tmp_path / "out", SMALL, shard=(index, 5))
    merged = tokenize([str(corpus)], tmp_path / "out", SMALL).statistics
    assert merged == whole
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / "out/.scratch").exists()
    assert read < 1.2 * alone
    assert whole["rejects"] == 1, "a file of blank lines that is cut"


def test_the_corpus_is_cut_by_bytes_and_row_groups(tmp_path: Path) -> None:
    corpus = find_corpus([str(make_corpus(tmp_path / "corpus"))], tmp_path / "out")
    pieces = pieces_of(corpus, SMALL)
    cut = {piece.spans[0].file.name for piece in pieces if not piece.spans[0].part.whole}
    assert {Path(name).name for name in cut} == {"blank.txt", "big.txt", "big.jsonl", "big.parquet"}
    assert max(len(piece.spans) for piece in pieces) > 1, "small files go together"


CHANGES: list[Callable[[bytes], bytes]] = [
    lambda data: data.replace(b"cat", b"cow"),
    lambda data: data[: len(data) // 2],
    lambda data: b"more\n\n" + data,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_its_survey_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
) -> None:
    path = make_corpus(tmp_path / "corpus") / "big.txt"
    surveyed = stage.read_plan

    def then_changed(scratch: Path) -> stage.Plan:
        path.write_bytes(change(path.read_bytes()))
        return surveyed(scratch)

    monkeypatch.setattr(stage, "read_plan", then_changed)
    with pytest.raises(ChangedFile, match=r"big\.txt changed while it was read"):
        tokenize([str(tmp_path / "corpus")], tmp_path / "out", SMALL)


HOLD = """
import sys, time
from pathlib import Path
from cola_cli.artifacts import lock
from cola_cli.artifacts.lock import Claims
from cola_cli.artifacts.mirror import SCRATCH
from cola_cli.artifacts.verify import verify
claims = Claims(Path(sys.argv[1]))
print(claims.take(3), flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_claimed_is_free_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "claims")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with Claims(tmp_path / "claims") as claims:
            assert not claims.take(3)
            assert claims.take(2)
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            assert claims.take(3)


def test_a_stopped_process_that_holds_a_piece_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STOPPED_SECONDS", 0.3)
    corpus = [str(make_corpus(tmp_path / "corpus"))]

    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "run_all", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tokenize(corpus, tmp_path / "out", SMALL)  # which leaves a survey that is not done
    (claims,) = tmp_path.glob("out/.scratch/*/.here/claims")
    command = [sys.executable, "-c", HOLD, str(claims)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            with pytest.raises(OutputLocked, match=f"process {holder.pid} on .*, which is stopped"):
                tokenize(corpus, tmp_path / "out", SMALL)
        finally:
            holder.kill()
    tokenize(corpus, tmp_path / "out", SMALL)


def test_nothing_of_a_failed_survey_is_left_when_the_mended_corpus_takes_its_place(
    tmp_path: Path,
) -> None:
    path = make_corpus(tmp_path / "corpus") / "big.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + b'{"text"')
    with pytest.raises(InputError):
        tokenize([str(tmp_path / "corpus")], tmp_path / "out", SMALL)
    assert list(tmp_path.glob("out/.scratch/*/*.parquet"))
    path.write_bytes(good)
    tokenize([str(tmp_path / "corpus")], tmp_path / "out", SMALL, run=Run(overwrite=True))
    assert not verify(tmp_path / "out").findings
    assert not list(tmp_path.glob("out/.scratch*"))


def test_a_damaged_survey_is_named_and_made_again_once_it_is_removed(tmp_path: Path) -> None:
    corpus, out = make_corpus(tmp_path / "corpus"), tmp_path / "out"
    tokenize([str(corpus)], out, SMALL, shard=(0, 2))
    (scratch,) = out.glob(f"{SCRATCH}/*")
    for name in ("chunks.parquet", "00000.parquet"):
        path = scratch / name
        path.write_bytes(path.read_bytes()[:-9])
        assert "parts" in survey(out)[0].progress or "pieces" in survey(out)[0].progress
        with pytest.raises(DamagedArtifact, match="scratch") as raised:
            tokenize([str(corpus)], out, SMALL)
        assert "remove" in raised.value.remedy
        (scratch / "chunks.parquet").unlink(missing_ok=True)
    shutil.rmtree(scratch)
    tokenize([str(corpus)], out, SMALL)
    tokenize([str(corpus)], tmp_path / "whole", SMALL)
    assert content(out) == content(tmp_path / "whole")


def test_a_shard_that_others_have_overtaken_ends_in_peace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = make_corpus(tmp_path / "corpus"), tmp_path / "out"
    read_plan = stage.read_plan

    def overtaken(scratch: Path) -> stage.Plan:
        plan = read_plan(scratch)
        monkeypatch.setattr(stage, "read_plan", read_plan)
        tokenize([str(corpus)], out, SMALL)
        return plan

    monkeypatch.setattr(stage, "read_plan", overtaken)
    tokenize([str(corpus)], out, SMALL, shard=(0, 2))
    assert not verify(out).findings
    assert survey(out)[0].state == "complete"


def test_duplicates_that_need_more_memory_are_found_with_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, source = tmp_path / "corpus", random.Random(0)
    corpus.mkdir()
    made = [f"{source.randrange(60_000)}" for _ in range(100_000)]
    (corpus / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in made))
    settings = SMALL.model_copy(update={"part_bytes": 1 << 20})
    monkeypatch.setattr(surveys, "MEMORY", ("1MB",))
    with pytest.raises(DamagedArtifact, match="Out of Memory"):
        tokenize([str(corpus)], tmp_path / "out", settings)
    monkeypatch.setattr(surveys, "MEMORY", ("1MB", "128MB"))
    tokenize([str(corpus)], tmp_path / "out", settings)
    statistics = json.loads((tmp_path / "out" / "manifest.json").read_text())["statistics"]
    assert statistics["duplicates"] == len(made) - len({*made})
