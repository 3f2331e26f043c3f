"""Documents stream out of every format, and what is wrong is named with file and line or row."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cola_cli.artifacts.unpacking import ZstdStream
from cola_cli.corpus import documents
from cola_cli.corpus.documents import read_documents
from cola_cli.corpus.files import file_format, find_files
from cola_cli.errors import InputError

TEXTS = ["First döcument,\nin two lines.", 'Second "quoted", with commas.', "Third."]


def write(path: Path) -> Path:
    """The three texts in the format that the name of `path` asks for."""
    kind = file_format(path)
    plain = path.with_name(f"plain{kind}")
    if kind == ".parquet":
        pq.write_table(pa.table({"id": [1, 2, 3], "text": TEXTS}), plain)
    elif kind == ".csv":
        with plain.open("w", newline="") as stream:
            csv.writer(stream).writerows([["id", "text"], *([i, t] for i, t in enumerate(TEXTS))])
    elif kind == ".jsonl":
        plain.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    else:
        plain.write_text("\n\n \n".join(TEXTS) + "\n")
    data = plain.read_bytes()
    plain.unlink()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        half = len(data) // 2  # two frames, as parallel compressors write
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name",
    ["a.txt", "a.md", "a.jsonl", "a.csv", "a.parquet"]
    + [f"a.{kind}.{packing}" for kind in ("txt", "jsonl", "csv") for packing in ("gz", "zst")],
)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    found = [document.text for document in read_documents(path, "text", "blank-line")]
    assert found == TEXTS


def test_a_text_file_can_be_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    assert len(list(read_documents(path, "text", "file"))) == 1


def test_files_folders_and_patterns_are_found_once_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.jsonl.zst", "sub/image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    named = [str(tmp_path / "b.txt"), str(tmp_path), str(tmp_path / "*.md")]
    assert [Path(file.name).name for file in find_files(named)] == ["b.txt", "a.md", "c.jsonl.zst"]


def _bad(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _cut(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write(folder / name)
        path.write_bytes(path.read_bytes()[:-9])
        return path

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            _bad("a.txt", b"fine\nb\xe4d\n"),
            r"a\.txt, line 2 is not UTF-8 \(byte 0xe4 at column 2\)",
        ),
        (_bad("a.jsonl", b'{"text": "fine"}\n{"text": \n'), r"a\.jsonl, line 2 is not valid JSON"),
        (
            _bad("a.jsonl", b'{"body": "x"}\n'),
            r"line 1 has no field 'text' \(it has body",
        ),
        (_bad("a.jsonl", b"[1]\n"), "line 1 is a list, not an object"),
        (_bad("a.jsonl", b'{"text": 7}\n'), "line 1: the field 'text' is a number, not a text"),
        (_bad("a.jsonl", b'{"text": ["a"]}\n'), "line 1: the field 'text' is a list, not a text"),
        (
            _bad("a.jsonl", b'{"text": "a", "text": "b"}\n'),
            "line 1 .*the field 'text' occurs twice",
        ),
        (_bad("a.jsonl", b'{"te\\u0078t": "a", "text": "b"}\n'), "the field 'text' occurs twice"),
        (_bad("a.txt", b"one\r\rtwo\r"), r"line 1 holds lines that end in CR alone"),
        (_bad("a.csv", b"id,text\r1,a\r"), "line 1: not valid CSV"),
        (_bad("a.csv", b"id,text\n1,a\n2,b,c\n"), "line 3 has 3 fields, but the header has 2"),
        (_bad("a.csv", b"id,text\n1\n"), "line 2 has 1 fields, but the header has 2"),
        (_bad("a.csv", b'id,text\n1,"a\n2,b\n3,c\n'), "lines 2 to 4: not valid CSV"),
        (_bad("a.csv", b'id,text\n1,"a "b" c"\n'), "line 2: not valid CSV"),
        (_bad("a.csv", b"text,text\na,b\n"), "has two columns 'text'"),
        (_bad("a.txt", "wörd".encode("utf-16")), "is UTF-16"),
        (_bad("a.txt", "wörd".encode("utf-32")), "is UTF-32"),
        (_bad("a.jsonl", b'{\0"\0t\0'), "is UTF-16"),
        (_bad("a.jsonl", b'{"text": "\\ud800"}\n'), "line 1 holds half of a surrogate pair"),
        (_bad("a.jsonl", b"[" * 100_000), "line 1 is not valid JSON"),
        (_bad("a.csv", b"id,body\n1,x\n"), r"has no column 'text' \(it has id, body\)"),
        (_bad("a.parquet", b"PAR1 nothing PAR1"), r"a\.parquet is not a whole Parquet file"),
        (_bad("a.txt.gz", b"no gzip"), r"a\.txt\.gz is truncated or damaged"),
        (_bad("a.txt.zst", b"no zstd at all"), r"a\.txt\.zst is truncated or damaged"),
        (_cut("a.txt.gz"), r"a\.txt\.gz is truncated or damaged"),
        (_cut("a.txt.zst"), r"a\.txt\.zst is truncated or damaged"),
        (_cut("a.parquet"), r"a\.parquet is not a whole Parquet file"),
    ],
)
def test_bad_files_are_named_with_line_and_remedy(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        list(read_documents(path, "text", "blank-line"))
    assert caught.value.remedy
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("a.b", '{"a": {"b": "x"}, "a": {"b": "y"}}'),
        ("a.b", '{"a.b": "x", "a.b": "y"}'),
        ("a.b", '{"a": {"b": "x", "\\u0062": "y"}}'),
    ],
)
def test_a_field_within_a_field_is_named_once(tmp_path: Path, field: str, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="occurs twice"):
        list(read_documents(path, field, "blank-line"))
    path.write_text('{"other": 1, "other": 2, "a": {"b": "x", "c": 1, "c": 2}}\n')
    assert [one.text for one in read_documents(path, field, "blank-line")] == ["x"]


def test_an_endless_line_is_an_error_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "DOCUMENT_LIMIT", 1000)
    path = tmp_path / "bomb.txt.zst"
    path.write_bytes(zstandard.compress(b"x" * 10_000_000))
    with pytest.raises(InputError, match="line 1 is longer than"):
        list(read_documents(path, "text", "blank-line"))
    path = tmp_path / "long.txt"
    path.write_bytes(b"short line\n" * 200)
    for rule in ("blank-line", "file"):
        with pytest.raises(InputError, match="longer than"):
            list(read_documents(path, "text", rule))


def test_a_zstd_bomb_is_unpacked_a_little_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "bomb.txt.zst"
    path.write_bytes(zstandard.compress(bytes(400 << 20), level=19))
    assert path.stat().st_size < 100_000
    with path.open("rb") as raw:
        stream = ZstdStream(raw)
        largest = 0
        while stream.readinto(bytearray(1)):
            largest = max(largest, len(stream._ready))
            stream._ready = b""
    assert largest <= 33 << 20


def test_unknown_names_and_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="matches no corpus file"):
        find_files([str(tmp_path / "*.txt")])
    (tmp_path / "a.docx").touch()
    with pytest.raises(InputError, match=r"a\.docx is not of a known kind"):
        find_files([str(tmp_path / "a.docx")])


def test_carriage_returns_within_lines_and_before_line_feeds_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"10 %\r20 %\r\r\n\r\r\nnext\r\n")
    assert [one.text for one in read_documents(path, "text", "blank-line")] == [
        "10 %\r20 %",
        "next",
    ]
    path.with_suffix(".csv").write_bytes(b"id,text\r1,a\r")
    with pytest.raises(InputError) as caught:
        list(read_documents(path.with_suffix(".csv"), "text", "blank-line"))
    assert "line feeds" in str(caught.value.remedy)
