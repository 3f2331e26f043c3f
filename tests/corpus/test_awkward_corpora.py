"""Corpora as people have them: linked, hidden, empty and foreign files, cola's own artifacts, odd Parquet.

What is read is compared with what was written into the folders, which this file keeps account of itself.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cola_cli.artifacts import Identity, Output
from cola_cli.corpus.documents import read_documents
from cola_cli.corpus.files import LeftOut, find_files
from cola_cli.errors import InputError

BOM = "\ufeff"
MADE = Identity(stage="sample", settings={}, inputs={})
ODD = (
    (".hidden.txt", "hidden"), ("._a.jsonl", "hidden"), ("n.ndjson", "other_files"),
    ("a.json.gz", "other_files"), ("noext", "other_files"), ("e.txt", ""),
)  # fmt: skip


class Folders:
    """A tree of folders made by chance, and what a reader of it must find."""

    def __init__(self, top: Path, seed: int) -> None:
        self.source = random.Random(seed)
        self.texts: Counter[str] = Counter()  # of documents
        self.left_out: Counter[str] = Counter()
        self._number = 0
        elsewhere = top / "elsewhere"  # is reached by a link alone
        elsewhere.mkdir(parents=True)
        self.corpus = top / "corpus[1] %20~"
        self.corpus.mkdir()
        linked = Folders.__new__(Folders)
        linked.__dict__ = self.__dict__ | {"texts": Counter(), "left_out": Counter()}
        linked._fill(elsewhere, 1)
        self._number = linked._number
        self._fill(self.corpus, 2)
        for name in ("linked", "linked again"):
            (self.corpus / name).symlink_to(os.path.relpath(elsewhere, self.corpus))
            self.texts += linked.texts
            self.left_out += linked.left_out
        (self.corpus / "loop").symlink_to(self.corpus)
        (self.corpus / "dangling.txt").symlink_to("nowhere")
        self.left_out["other_files"] += 1

    def _fill(self, folder: Path, depth: int) -> None:
        for _ in range(6):
            self.source.choice((self._file, self._file, self._file, self._odd))(folder)
        for name in ("a b", "[x]", ".cache", "made") if depth else ():
            below = folder / name
            if name == ".cache":
                below.mkdir()
                (below / "c.txt").write_text("hidden")
                self.left_out["hidden"] += 1
            elif name == "made":
                with Output.open(below, "samples", MADE).writing() as writer:
                    writer.finish({})
                (below / "generated.txt").write_text("cola wrote this")
                self.left_out["artifacts"] += 1
            else:
                below.mkdir()
                self._fill(below, depth - 1)

    def _file(self, folder: Path) -> None:
        self._number += 1
        texts = [
            f"Text {self._number} {i}, “quoted”\u2028" for i in range(self.source.randrange(4))
        ]
        self.texts.update(texts)
        path = (
            folder / f"{self._number}{self.source.choice(('.txt', '.jsonl', '.csv', '.parquet'))}"
        )
        mark = self.source.choice(("", BOM))
        match path.suffix:
            case ".txt":
                path.write_text(mark + "\n\n".join(texts))
            case ".jsonl":
                path.write_text(mark + "".join(json.dumps({"text": t}) + "\n" for t in texts))
            case ".csv":
                with path.open("w", newline="") as stream:
                    stream.write(mark)
                    csv.writer(stream).writerows(
                        [["id", "text"], *([i, t] for i, t in enumerate(texts))]
                    )
            case _:
                self._parquet(path, texts)
        if path.suffix != ".parquet" and self.source.random() < 0.3:
            packed = self.source.choice((("gz", gzip.compress), ("zst", zstandard.compress)))
            path.with_name(f"{path.name}.{packed[0]}").write_bytes(packed[1](path.read_bytes()))
            path.unlink()

    def _parquet(self, path: Path, texts: list[str]) -> None:
        table = pa.table({"text": pa.array(texts, pa.string())})
        pieces = [table, *[table.slice(0, 0)] * self.source.randrange(3)]
        self.source.shuffle(pieces)
        with pq.ParquetWriter(path, table.schema) as writer:
            for piece in pieces:
                writer.write_table(piece)

    def _odd(self, folder: Path) -> None:
        self._number += 1
        name, kind = self.source.choice(ODD)
        path = folder / f"{name[:1] if name.startswith('.') else ''}{self._number}{name}"
        path.write_text("" if name == "e.txt" else "not to be read")
        self.left_out[kind] += bool(kind)


def read(*names: object, left_out: LeftOut | None = None) -> Counter[str]:
    """The documents of a corpus, empty ones left out."""
    files = find_files([str(name) for name in names], left_out=left_out)
    found = (d.text for file in files for d in read_documents(file, "text", "blank-line"))
    return Counter(text for text in found if text)


@pytest.mark.parametrize("seed", range(12))
def test_every_text_of_a_folder_is_read_and_what_is_not_is_counted(
    tmp_path: Path, seed: int
) -> None:
    folders, left_out = Folders(tmp_path, seed), LeftOut()
    assert read(folders.corpus, left_out=left_out) == folders.texts
    assert Counter(left_out.counts()) == +folders.left_out


@pytest.mark.parametrize("seed", range(4))
def test_patterns_read_what_the_folder_does(tmp_path: Path, seed: int) -> None:
    folders = Folders(tmp_path, seed)
    wanted = find_files([str(folders.corpus)])
    suffixes = {"".join(Path(file.name).suffixes) for file in wanted}
    patterns = [f"{folders.corpus}/**/*{suffix}" for suffix in sorted(suffixes)]
    found = find_files(patterns)
    assert {file.name for file in found} == {file.name for file in wanted}


@pytest.mark.parametrize("name", ["made", "made/parts", "made/parts/*.txt", "made/**/*.txt"])
def test_what_cola_wrote_is_not_a_corpus(tmp_path: Path, name: str) -> None:
    with Output.open(tmp_path / "made", "samples", MADE).writing() as writer:
        with writer.part(0, suffix=".txt") as part:
            part.path.write_text("generated")
        writer.finish({})
    with pytest.raises(InputError, match="that cola wrote"):
        find_files([str(tmp_path / name)])
    assert read(tmp_path / "made" / "parts" / "00000.txt") == Counter(["generated"])


def test_only_groups_of_no_rows_are_no_documents(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for _ in range(2):
            writer.write_table(schema.empty_table())
    assert not read(tmp_path / "a.parquet")
