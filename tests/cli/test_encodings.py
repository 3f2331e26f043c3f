"""Files as other programs write them: with a byte order mark, in UTF-16, packed; bytes that are not text."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import zstandard

import cola_cli
from cola_cli.artifacts.reading import read_record
from cola_cli.artifacts.rows import read_rows
from cola_cli.corpus.documents import read_documents
from cola_cli.corpus.tokenizer import load_tokenizer, train_tokenizer
from cola_cli.errors import InputError, UsageError
from cola_cli.evaluation.tasks import read_template
from cola_cli.sampling.prompts import given_prompts, parse_prompts, read_prompts
from cola_cli.settings.resolve import read_toml
from tests.conftest import Run, cola_command

BOM = b"\xef\xbb\xbf"
DEMO = str(Path(cola_cli.__file__).parent / "demo")
PROMPTS = '{"id": "né", "prompt": "你好"}\n\n{"prompt": "a"}\n'.encode()


def _packed(name: str, data: bytes) -> bytes:
    match name.rpartition(".")[2]:
        case "gz":
            return gzip.compress(data)
        case "zst":
            return zstandard.ZstdCompressor().compress(data)
    return data


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.jsonl.zst"])
@pytest.mark.parametrize("mark", [b"", BOM])
def test_prompts_are_read_packed_and_behind_a_mark(tmp_path: Path, name: str, mark: bytes) -> None:
    (tmp_path / name).write_bytes(_packed(name, mark + PROMPTS))
    found = list(read_prompts(tmp_path / name))
    assert [(p.id, p.text) for p in found] == [("né", "你好"), (1, "a")]
    assert found[1].place.endswith("line 3")
    assert [p.text for p in parse_prompts(io.BytesIO(mark + PROMPTS), "stdin")] == ["你好", "a"]


def test_records_and_settings_are_read_behind_a_mark(tmp_path: Path) -> None:
    toml, record = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_bytes(BOM + b"[vae.train]\nsteps = 60\n")
    record.write_bytes(BOM + b'{"a": 1}')
    assert read_toml(toml) == {"vae": {"train": {"steps": 60}}}
    assert read_record(toml, dict[str, object], "") == {"vae": {"train": {"steps": 60}}}
    assert read_record(record, dict[str, int], "") == {"a": 1}
    (tmp_path / "t.toml").write_bytes(BOM + b'item = "{prompt}"')
    assert read_template(tmp_path / "t.toml").item == "{prompt}"
    trained = train_tokenizer(["a text"], 300).to_bytes()
    (tmp_path / "tokenizer.json").write_bytes(BOM + trained)
    assert load_tokenizer(tmp_path / "tokenizer.json").to_bytes() == trained
    (tmp_path / "r.jsonl").write_bytes(BOM + b'{"a": 1}\n{"a": 2}\n')
    assert [row["a"] for _, row in read_rows(tmp_path / "r.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("encoding", "cure"), [("utf-16", "utf-16"), ("utf-32", "utf-32"), ("latin-1", "latin1")]
)
def test_another_encoding_is_named_with_its_cure(tmp_path: Path, encoding: str, cure: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes('{"prompt": "é"}\n'.encode(encoding))
    with pytest.raises(InputError, match=f"line 1 is not UTF-8.*iconv -f {cure} "):
        list(read_prompts(file))
    file.write_bytes('a = "é"'.encode(encoding))
    with pytest.raises(
        UsageError, match="not UTF-8" if encoding == "latin-1" else encoding.upper()
    ):
        read_toml(file)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_of_another_name_is_named_with_its_cure(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(_packed(f"p{suffix}", PROMPTS))
    documents = partial(read_documents, text_field="prompt", rule="file")
    for read in (read_prompts, documents):
        with pytest.raises(InputError, match=f"line 1 is not UTF-8.*let its name end in {suffix}"):
            list(read(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["likelihood", DEMO, "--text", b"caf\xe9"], 4),
        (["likelihood", DEMO, "--text", "fine", "--prefix", b"caf\xe9"], 4),
        (["tokenize", "corpus.txt", "-o", "out", "--text-field", b"caf\xe9"], 2),
        (["tokenize", "corpus.txt", "-o", "out", "--set", b"end_of_text=caf\xe9"], 2),
        (["train", "vae", "tokens", "-o", "out", "--set", b"optim.name=caf\xe9"], 2),
        (["sample", "demo", "-p", "fine", "--set", b"history=caf\xe9"], 2),
    ],
)
def test_no_option_takes_bytes_that_are_not_text(
    tmp_path: Path, cola: Run, command: list[str | bytes], code: int
) -> None:
    (tmp_path / "corpus.txt").write_text("Anna sees the boat.")
    words = [os.fsdecode(word) for word in command]
    assert "is not UTF-8" in cola(*words, expect=code).stderr
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_not_text_on_the_command_line_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not UTF-8"):
        given_prompts(["fine", os.fsdecode(b"caf\xe9")])
    command = [word.encode() for word in cola_command("sample", "demo", "-n", 1, "-p")]
    result = subprocess.run([*command, b"caf\xe9"], capture_output=True, text=True)
    assert result.returncode == 4
    assert result.stderr.splitlines()[0].endswith(r"--prompt 'caf\udce9' is not UTF-8.")
    result = subprocess.run(
        [*command[:-3], b"--prompts", b"-"], input=b'{"prompt": "caf\xe9"}\n', capture_output=True
    )
    assert result.returncode == 4
    assert b"standard input, line 1 is not UTF-8" in result.stderr


def test_a_query_of_no_artifact_has_no_empty_bracket(cola: Run) -> None:
    assert "()" not in (said := cola("sql", "selec 1", expect=2).stderr)
    assert "asked of" not in said


@pytest.mark.parametrize("device", ["mps", "cuda:99", "meta", "xpu", "nothing"])
def test_a_device_that_is_not_there_is_a_usage_error(cola: Run, device: str) -> None:
    result = cola("sample", "demo", "-p", "Tom", "--device", device, expect=2)
    assert f"--device {device}" in result.stderr
    assert json.dumps("fault") not in result.stderr
