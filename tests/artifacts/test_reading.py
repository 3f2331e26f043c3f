"""Records and rows that others wrote: bounded, and what is wrong is named with its place."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from pydantic import BaseModel, ConfigDict

from cola_cli.artifacts.manifest import Identity, Manifest, read_manifest, write_manifest
from cola_cli.artifacts.reading import read_record
from cola_cli.artifacts.rows import LINE_LIMIT, read_rows, write_rows
from cola_cli.errors import DamagedArtifact, InputError


class Sizes(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    heads: int
    scale: float = 1.0
    shape: tuple[int, ...] = ()


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_json_and_toml_give_the_same_record(tmp_path: Path) -> None:
    first = written(tmp_path / "a.json", '{"heads": 3, "scale": 2, "shape": [1, 2]}')
    assert read_record(first, Sizes, "") == Sizes(heads=3, scale=2.0, shape=(1, 2))
    second = written(tmp_path / "a.toml", "heads = 3\nscale = 2")
    assert read_record(second, Sizes, "") == Sizes(heads=3, scale=2.0)
    assert read_record(first, dict[str, object], "")["scale"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"heads": "3"}',
            r"a\.json is not as expected \(heads: Input should be a valid integer\)",
        ),
        ('{"heads": true}', "heads: Input should be a valid integer"),
        ('{"heads": 3, "scale": 1e999}', "scale: Input should be a finite number"),
        ('{"heads": 3, "scale": 1' + "0" * 400 + "}", "scale: Input should be a finite number"),
        ('{"heads": 3, "wings": 2}', "wings: Extra inputs are not permitted"),
        ("[" * 5000, "recursion limit exceeded"),
        ("{", "Invalid JSON: EOF while parsing"),
    ],
)
def test_the_wrong_field_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DamagedArtifact, match=said) as caught:
        read_record(written(tmp_path / "a.json", text), Sizes, "Fetch it.", DamagedArtifact)
    assert caught.value.remedy == "Fetch it."


def test_what_is_not_a_file_of_some_size_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="not a regular file"):
        read_record(tmp_path / "pipe.json", Sizes, "")
    with pytest.raises(InputError, match="No such file"):
        read_record(tmp_path / "none.json", Sizes, "")
    large = written(tmp_path / "large.json", " " * (2 << 20))
    with pytest.raises(InputError, match="larger than 1 MiB"):
        read_record(large, Sizes, "", limit=1 << 20)
    with pytest.raises(InputError, match=r"a\.toml is not valid TOML"):
        read_record(written(tmp_path / "a.toml", "heads = ["), Sizes, "")


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)],
)
def test_rows_are_read_plain_and_packed(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(pack('{"a": "x\u2028y\u0085z"}\r\n\n{"a": 2}'.encode()))
    assert list(read_rows(path)) == [(1, {"a": "x\u2028y\u0085z"}), (3, {"a": 2})]
    path.write_bytes(pack(json.dumps({"a": "b" * LINE_LIMIT}).encode()))
    with pytest.raises(InputError, match=f"{name}, line 1 is too long"):
        list(read_rows(path))
    path.write_bytes(pack(b'{"a": 1}\n{"a": \xff}\n'))
    with pytest.raises(InputError, match=f"{name}, line 2 is not UTF-8"):
        list(read_rows(path))


def test_written_rows_are_read_again_and_a_part_that_is_cut_short_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "00000.jsonl.zst"
    rows = [{"text": "ü\n\u2028"}, {"text": ""}]
    write_rows(path, rows)
    assert [row for _, row in read_rows(path)] == rows
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="truncated or damaged"):
        list(read_rows(path))


def test_a_row_names_each_field_once(tmp_path: Path) -> None:
    """The last of two prompts would be answered, and nothing said."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "prompt": "a"}\n{"prompt": "a", "prom\\u0070t": "b"}\n')
    with pytest.raises(InputError, match=r"line 2 .*'prompt' occurs twice"):
        list(read_rows(path))


@pytest.mark.parametrize(
    "environment",
    [{"threads": "many"}, {"threads": 10**9}, {"share_tokens": "x"}, {"corpus": {"a.txt": {}}}],
)
def test_what_later_runs_read_of_an_environment_has_its_types(
    tmp_path: Path, environment: dict[str, object]
) -> None:
    """Manifests that others wrote have right digests too."""
    identity = Identity(stage="tokenize", settings={}, inputs={})
    manifest = Manifest(
        kind="tokens", status="complete", identity=identity, fingerprint=identity.fingerprint
    )
    forged = manifest.model_copy(update={"environment": environment})
    write_manifest(tmp_path, forged)
    with pytest.raises(DamagedArtifact, match="environment"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path).environment == {}
