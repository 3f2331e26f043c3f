"""Corpora behind URLs: found, read, and refused as those on disk are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cola_cli.artifacts.files import sha256_file
from cola_cli.corpus.documents import read_documents
from cola_cli.corpus.files import CorpusFile, find_files
from cola_cli.errors import InputError
from tests.conftest import Run, content
from tests.corpus.test_documents import TEXTS, write
from tests.stages.test_tokenize import PARTS, SMALL, make_corpus

NAMES = ("a.txt", "b.jsonl.zst", "c.csv.gz", "sub/d.parquet", "sub/deep/e.md")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "corpus" / name)
    (tmp_path / "corpus/sub/image.png").write_bytes(b"no text")
    return tmp_path / "corpus"


@pytest.fixture
def memory(folder: Path) -> Iterator[str]:
    """The same files in fsspec's file system in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(folder), "/corpus", recursive=True)
    yield "memory://corpus"
    filesystem.rm("/corpus", recursive=True)


def below(files: list[CorpusFile]) -> list[str]:
    return [file.name.partition("corpus/")[2] for file in files]


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_every_format_is_read_from_a_url(folder: Path, memory: str, kind: str) -> None:
    files = find_files([folder.as_uri() if kind == "file" else memory])
    assert below(files) == list(NAMES)
    for file in files:
        found = [d.text for d in read_documents(file, "text", "blank-line")]
        assert found == TEXTS
        path = folder / file.name.partition("corpus/")[2]
        assert file.state()[0] == path.stat().st_size
        assert file.sha256() == sha256_file(path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("sub/*", ["sub/d.parquet"]),
        ("sub/**/*.md", ["sub/deep/e.md"]),
        ("**/*.parquet", ["sub/d.parquet"]),
        ("*/d.parquet", ["sub/d.parquet"]),
        ("a.txt", ["a.txt"]),
    ],
)
def test_patterns_choose_among_the_files_of_a_url(
    folder: Path, memory: str, pattern: str, expected: list[str]
) -> None:
    (folder / "sub/image.png").unlink()
    fsspec.filesystem("memory").rm("/corpus/sub/image.png")
    for url in (folder.as_uri(), memory):
        assert below(find_files([f"{url}/{pattern}"])) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/there.txt", "matches no corpus file"),
        ("memory://corpus/*.docx", "matches no corpus file"),
        ("memory://corpus/sub/image.png", "is not of a known kind"),
        ("nosuch://place/a.txt", "cannot be opened"),
    ],
)
def test_a_url_that_leads_nowhere_is_bad_input(memory: str, url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_files([url])
    assert caught.value.remedy


def test_a_damaged_file_behind_a_url_is_named(memory: str) -> None:
    filesystem = fsspec.filesystem("memory")
    whole = filesystem.cat("/corpus/b.jsonl.zst")
    filesystem.pipe("/corpus/b.jsonl.zst", whole[:-9])
    (file,) = find_files([f"{memory}/b.jsonl.zst"])
    with pytest.raises(InputError, match=r"memory://.*b\.jsonl\.zst is truncated"):
        list(read_documents(file, "text", "blank-line"))


def test_tokens_of_a_url_are_those_of_the_same_files_on_disk(cola: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    arguments = (*SMALL, *PARTS, "--workers", 1)
    cola("tokenize", "corpus", "-o", "disk", *arguments)
    url = (tmp_path / "corpus").as_uri()
    cola("tokenize", url, "-o", "url", *arguments)
    assert "up to date" in cola("tokenize", url, "-o", "url", *arguments).stdout
    whole, other = (content(tmp_path / name) for name in ("disk", "url"))
    assert [n for n in whole if whole[n] != other[n]] == [
        n for n in whole if n.startswith("parts/") and n.endswith(".json")
    ]
    source = json.loads((tmp_path / "url/parts/00000.json").read_text())["source"]
    assert source == f"{url}/a.txt, line 1"


@pytest.mark.parametrize("names", [[], [""], ["texts", ""]])
def test_a_name_that_is_empty_is_not_the_current_folder(
    names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"is empty|names no files"):
        find_files(names)
    assert len(find_files(["."])) == len(NAMES)
