"""A sample of the hostile files, with another seed with every commit; bombs; and that the count can fail."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cola_cli.corpus import documents
from cola_cli.corpus import parquet_footer as pages
from cola_cli.corpus.documents import read_documents
from cola_cli.corpus.files import CorpusFile
from cola_cli.corpus.tokenizer import load_tokenizer, train_tokenizer
from cola_cli.errors import DamagedArtifact, InputError
from cola_cli.sampling.prompts import read_prompts
from cola_cli.weights.configs import vae_config
from tests.conftest import drawn_seed
from tests.hostile.originals import make_originals
from tests.hostile.parser import Parser
from tests.hostile.surfaces import parsers
from tests.hostile.worker import MEMORY, run_parsers

INPUTS = 40  # random ones of each parser, beside the fixed ones, of which
MOST = 25  # are tried


@pytest.mark.slow
def test_no_hostile_file_of_a_random_sample_brings_a_parser_down(tmp_path: Path) -> None:
    """A few cases of every parser; the seed is printed."""
    seed = drawn_seed()
    print(f"seed {seed}")
    originals = make_originals(tmp_path / "originals")
    names = [parser.name for parser in parsers()]
    tallies, peak = run_parsers(names, originals, INPUTS, seed, MOST)
    assert [tally.parser for tally in tallies] == names
    assert all(tally.tried == MOST + 1 for tally in tallies)
    crashes = [crash for tally in tallies for crash in tally.crashes]
    assert not crashes, f"seed {seed}: " + "\n".join(crashes)
    assert all(tally.accepted for tally in tallies), tallies
    assert peak < MEMORY / 2


def test_a_parser_that_crashes_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "originals" / "one"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text('{"a": 1}')
    careless = Parser(
        "careless",
        "one",
        {"x.json": "json"},
        lambda place: json.loads((place / "x.json").read_bytes()),
    )
    (tmp_path / "work").mkdir()
    tally = careless.run(tmp_path / "originals", tmp_path / "work", 20, 0)
    assert tally.crashed > 5
    assert tally.accepted
    assert "RecursionError" in " ".join(tally.crashes)


def test_texts_that_unpack_without_end_are_refused_before_they_fill_the_memory(
    tmp_path: Path,
) -> None:
    """A million rows of one text of 2 MiB: a file of kilobytes, two terabytes unpacked."""
    column = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1_000_000, pa.int32()), pa.array(["x" * (2 << 20)])
    )
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": column}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    with pq.ParquetFile(path) as file:
        rows = documents._rows_at_a_time(
            CorpusFile(str(path)), file.metadata, "text", [*range(file.num_row_groups)]
        )
    assert rows * (2 << 20) <= documents.PAGE_LIMIT
    stream = read_documents(path, "text", "blank-line")
    assert len(next(stream).text) == 2 << 20
    stream.close()


def test_a_page_that_is_too_large_unpacked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PAGE_LIMIT", 1 << 16)
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"text": ["x" * (1 << 17)]}), path, compression="zstd")
    with pytest.raises(InputError, match="has a page of 0 MiB unpacked"):
        list(read_documents(path, "text", "blank-line"))


@pytest.mark.parametrize("compression", ["none", "zstd", "gzip"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_largest_page_is_what_its_header_says(
    tmp_path: Path, compression: str, version: str
) -> None:
    """Plain texts take their bytes and four for the length of each."""
    texts = ["a" * 100, "b" * 7, "c" * 5000]
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"text": texts}),
        path,
        compression=compression,
        use_dictionary=False,
        data_page_version=version,
    )
    largest = pages.largest_page(path, [0], [0])
    values = sum(map(len, texts)) + 4 * len(texts)
    assert values <= largest <= values + 16  # levels of definition beside them


def test_a_row_group_that_claims_more_than_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"tokens": pa.array([[1, 2]] * 3)}), path)
    schema = pq.ParquetFile(path).metadata.schema
    ((chunk,),) = pages.column_chunks(path)
    pages.require_group([chunk], schema)
    for values in (10**9, -1):
        with pytest.raises(ValueError, match=f"claims {values} values"):
            pages.require_group([chunk._replace(values=values)], schema)


def test_the_columns_of_a_footer_are_those_that_arrow_sees(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    numbers = pa.array([[i, i + 1] for i in range(5000)])
    texts = pa.array([f"text {i % 7}" for i in range(5000)])
    pq.write_table(pa.table({"n": numbers, "t": texts}), path, row_group_size=1000)
    metadata = pq.ParquetFile(path).metadata
    found = pages.column_chunks(path)
    assert len(found) == metadata.num_row_groups == 5
    for group, chunks in enumerate(found):
        columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
        for chunk, column in zip(chunks, columns, strict=True):
            places = (column.dictionary_page_offset, column.data_page_offset)
            place = min(offset for offset in places if offset)
            assert chunk == (column.num_values, place, column.total_compressed_size)


def test_a_gzip_bomb_in_one_line_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    packer = zlib.compressobj(9, wbits=31)
    with path.open("wb") as file:
        for _ in range(130):
            file.write(packer.compress(b"x" * (1 << 20)))
        file.write(packer.flush())
    assert path.stat().st_size < 1 << 18
    with pytest.raises(InputError, match="line 1 is longer than 128 MiB"):
        list(read_documents(path, "text", "blank-line"))


def test_a_pipe_in_the_place_of_a_manifest_does_not_hold_a_command_up(tmp_path: Path) -> None:
    from cola_cli.artifacts.manifest import read_manifest
    from cola_cli.errors import DamagedArtifact

    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(DamagedArtifact, match="not a regular file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ['"prompt": "\\ud800"', '"id": "\\ud800", "prompt": "a"'])
def test_half_of_a_surrogate_pair_in_a_prompt_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "fine"}\n{' + text + "}\n")
    with pytest.raises(InputError, match=r"p\.jsonl, line 2 holds half of a surrogate pair"):
        list(read_prompts(tmp_path / "p.jsonl"))


def test_a_tokenizer_with_a_token_of_a_huge_number_is_refused(tmp_path: Path) -> None:
    """The library would take 4 GiB for it, and end the process where there are none."""
    document = json.loads(train_tokenizer(["a few words"], 258).to_bytes())
    document["model"]["vocab"]["a"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="a token has the number 2147483648"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(("theta", "opens"), [(10**30, True), (10**400, False)])
def test_an_integer_of_any_size_for_a_float_of_a_network_opens_or_is_named(
    tmp_path: Path, theta: int, opens: bool
) -> None:
    folder = make_originals(tmp_path / "originals") / "artifacts/prior"
    path = folder / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": theta}))
    artifact = SimpleNamespace(file=lambda name: folder / name)
    if opens:
        assert vae_config(cast(Any, artifact)).rope_theta == 1e30
        return
    with pytest.raises(DamagedArtifact, match=r"vae/config\.json"):
        vae_config(cast(Any, artifact))
