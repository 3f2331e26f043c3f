"""Every parser of cola, with the real files whose hostile variants it is given."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cola_cli.errors import InputError
from tests.hostile.originals import ROWS, STEP
from tests.hostile.parser import Case, Parser, seal_artifact, seal_checkpoint, unsealed

SAMPLE = "Anna sees the red ball. Ünïcode \x00 <|endoftext|> 日本"


def parsers() -> list[Parser]:
    """All of them, in the order of the table."""
    return [*_corpora(), *_texts(), *_artifacts(), *_weights()]


def _corpora() -> list[Parser]:
    names = {
        "corpus .txt": ("corpus.txt", "text"),
        "corpus .jsonl": ("corpus.jsonl", "jsonl"),
        "corpus .csv": ("corpus.csv", "text"),
        "corpus .txt.gz": ("corpus.txt.gz", "binary"),
        "corpus .jsonl.zst": ("corpus.jsonl.zst", "binary"),
    }
    found = [
        Parser(
            name,
            "corpus",
            {file: kind},
            lambda folder, file=file: _documents(folder / file),
            exact=file.endswith(".gz"),  # has a checksum
        )
        for name, (file, kind) in names.items()
    ]
    parquet = Parser(
        "corpus .parquet",
        "corpus",
        {"corpus.parquet": "parquet"},
        lambda folder: _documents(folder / "corpus.parquet"),
        rows=ROWS,
        extra=_odd_parquet,
    )
    return [*found, parquet]


def _documents(path: Path) -> list[str]:
    from cola_cli.corpus.documents import read_documents

    whole = list(read_documents(path, "text", "file")) if path.suffix == ".txt" else []
    texts = [document.text for document in [*whole, *read_documents(path, "text", "blank-line")]]
    if not any(texts):  # an empty file is counted as a reject, and a corpus without text refused
        raise InputError(f"{path} holds no text.", "Name other files.")
    return texts


def _odd_parquet(folder: Path) -> Iterator[Case]:
    """Whole Parquet files whose columns are of other kinds than text."""
    invalid = pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")],
    )
    columns: dict[str, Any] = {
        "numbers": pa.array([1, 2]),
        "nulls": pa.nulls(2),
        "no rows": pa.array([], pa.string()),
        "invalid UTF-8": invalid,
        "bytes": pa.array([b"\xff", b"\0"]),
        "lists": pa.array([["a"], ["b"]]),
        "structs": pa.array([{"text": "a"}, {"text": "b"}]),
        "dictionaries": pa.array(["a", "b"]).dictionary_encode(),
        "large strings": pa.array(["a", "b"], pa.large_string()),
        "string views": pa.array(["a", "b"], pa.string_view()),
        "times": pa.array([2**62, 0], pa.timestamp("ns")),
        "decimals": pa.array([1, 2], pa.decimal128(5, 2)),
    }
    path = folder / "odd.parquet"
    for name, column in columns.items():
        pq.write_table(pa.table({"text": column}), path)
        yield name, "corpus.parquet", path.read_bytes()
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pq.write_table(twice, path)
    yield "the column twice", "corpus.parquet", path.read_bytes()
    pq.write_table(pa.table({f"\x1b[2J{i}\n" * 30: [1] for i in range(200)}), path)
    yield "names with control characters", "corpus.parquet", path.read_bytes()
    path.unlink()


def _texts() -> list[Parser]:
    return [
        Parser("prompts", "corpus", {"prompts.jsonl": "jsonl"}, _prompts),
        Parser("answers", "corpus", {"answers.jsonl": "jsonl"}, _answers("answers.jsonl")),
        Parser(
            "answers .zst",
            "corpus",
            {"answers.jsonl.zst": "binary"},
            _answers("answers.jsonl.zst"),
            exact=True,
        ),
        Parser("settings", "corpus", {"settings.toml": "text"}, _settings, extra=_odd_toml),
        Parser(
            "tokenizer.json",
            "artifacts/released",
            {"tokenizer.json": "json"},
            _tokenizer,
            extra=_odd_tokenizers,
        ),
    ]


def _prompts(folder: Path) -> Any:
    import json

    from cola_cli.sampling.prompts import read_prompts

    found = list(read_prompts(folder / "prompts.jsonl"))
    # what becomes of them: encoded, and answered on standard output under their ids
    return [
        (prompt.text.encode(), json.dumps({"id": prompt.id}, ensure_ascii=False).encode())
        for prompt in found
    ]


def _answers(name: str) -> Any:
    def parse(folder: Path) -> Any:
        from cola_cli.evaluation.outputs import read_items

        return [str(item).encode() for item in read_items(folder / name)]

    return parse


def _settings(folder: Path) -> Any:
    from cola_cli.settings.resolve import resolve
    from cola_cli.settings.vae import VAESettings

    return resolve(VAESettings, "vae", config=folder / "settings.toml").model_dump()


def _odd_toml(folder: Path) -> Iterator[Case]:
    texts = {
        "no table": b"vae = 5",
        "tables": b"[[vae]]\nx = 1",
        "many digits": b"[vae.train]\nsteps = " + b"9" * 5000,
        "hex digits": b"[vae.train]\nsteps = 0x" + b"f" * 5000,
        "deep lists": b"[vae.train]\nsteps = " + b"[" * 5000,
        "deep tables": b"[vae.train]\nsteps = " + b"{a=" * 5000,
        "deep names": b"vae." + b"a." * 5000 + b"b = 1",
        "deep section": b"[vae." + b"a." * 5000 + b"b]\nc = 1",
        "control characters": b'[vae]\n"\\u001b[2J\\n" = 1',
        "an impossible date": b"[vae.train]\nsteps = 2021-02-30",
        "a date": b"[vae.train]\nsteps = 2021-02-03T04:05:06Z",
        "not a number": b"[vae.optim]\nlr = nan",
        "infinite": b"[vae.optim]\nlr = inf",
        "a huge float": b"[vae.optim]\nlr = 1e999",
    }
    for label, text in texts.items():
        yield label, "settings.toml", text


def _tokenizer(folder: Path) -> Any:
    from cola_cli.corpus.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer.json")
    ids = tokenizer.encode(SAMPLE)
    assert [list(found) for found in tokenizer.encode_documents([SAMPLE])] == [ids]
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert 0 <= tokenizer.end_of_text_id < tokenizer.vocab_size
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size
    tokenizer.to_bytes()
    return tokenizer.decode(ids).encode()


def _odd_tokenizers(folder: Path) -> Iterator[Case]:
    """Tokenizers of other models, whole or lacking what they need to encode."""
    import json

    base = {"version": "1.0", "added_tokens": []}
    models: dict[str, Any] = {
        "words without unk": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"},
        "pieces without unk": {
            "type": "WordPiece", "vocab": {"a": 0}, "unk_token": "?",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
        },
        "an empty unigram": {"type": "Unigram", "unk_id": None, "vocab": []},
        "unk beyond a unigram": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]},
        "a unigram without unk": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]},
        "a unigram of NaN": {"type": "Unigram", "unk_id": 0, "vocab": [["a", float("nan")]]},
        "an empty BPE": {"type": "BPE", "vocab": {}, "merges": []},
        "merges of nothing": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]},
        "a merge with itself": {"type": "BPE", "vocab": {"a": 0, "aa": 0}, "merges": ["a a"]},
        "byte fallback without bytes": {
            "type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": True,
        },
        "ids far apart": {"type": "BPE", "vocab": {"a": 0, "b": 2**32 - 1}, "merges": []},
    }  # fmt: skip
    for label, model in models.items():
        yield label, "tokenizer.json", json.dumps(base | {"model": model}).encode()
    real = json.loads((folder / "tokenizer.json").read_bytes())
    sections: dict[str, Any] = {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                          "invert": False},
        "normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
        "post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        "decoder": {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9},
        "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 9},
        "padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": 0,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
        "added_tokens": [{"id": 2**32 - 1, "content": "x", "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True}],
    }  # fmt: skip
    for name, section in sections.items():
        yield f"odd {name}", "tokenizer.json", json.dumps(real | {name: section}).encode()


def _artifacts() -> list[Parser]:
    parts = Parser(
        "Parquet parts",
        "artifacts/latents",
        {"parts/00000.parquet": "parquet"},
        _rows,
        seal_artifact,
        rows=22,
        extra=_odd_parts,
    )
    manifest = Parser(
        "manifest.json",
        "artifacts/tokens",
        {"manifest.json": "json"},
        _open,
        seal_artifact,
    )
    return [
        manifest,
        unsealed(manifest, "manifest.json, digests left"),
        Parser(
            "part records",
            "artifacts/latents",
            {"parts/00000.json": "json", "parts/00001.json": "json"},
            _rows,
            seal_artifact,
        ),
        parts,
        unsealed(parts, "Parquet parts, digests left"),
        Parser(
            "SQL over artifacts",
            "artifacts/tokens",
            {
                "parts/00000.parquet": "parquet",
                "manifest.json": "json",
                "parts/00000.json": "json",
            },
            _sql,
            seal_artifact,
        ),
    ]


def _open(folder: Path) -> Any:
    from cola_cli.artifacts import Artifact
    from cola_cli.artifacts.verify import verify
    from cola_cli.stages.status import survey

    survey(folder)
    artifact = Artifact.open(folder)
    for record in artifact.manifest.files:
        assert artifact.file(record.path).resolve().is_relative_to(folder.resolve())
    # a file without a record is nobody's, and a sealed manifest of another identity has not made its parts
    for finding in verify(folder).findings:
        assert finding.foreign or "made from other inputs" in finding.problem, finding
    return artifact.manifest


def _rows(folder: Path) -> Any:
    from cola_cli.artifacts.kinds import Latents
    from cola_cli.corpus.sequences import Sequences, Shuffled

    artifact = Latents.open(folder)
    found = []
    for split in ("train", "validation"):
        sequences = Sequences(artifact, split)
        for rows in sequences.batches(4):
            assert rows.tokens.shape[0] == rows.lengths.shape[0] == len(rows)
            assert rows.mean is not None
            assert rows.logvar is not None
            assert rows.mean.shape == rows.logvar.shape
            found.append((rows.tokens.tolist(), rows.lengths.tolist(), rows.mean.tobytes()))
        Shuffled(sequences, seed=0, window=2048).read([0])
    return found


def _odd_parts(folder: Path) -> Iterator[Case]:
    """Parts whose columns have other types, lengths, nulls or no note of their shape."""
    target = "parts/00000.parquet"
    table = pq.read_table(folder / target)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    width = columns["mean"].type.byte_width
    count = len(table)
    odd: list[tuple[str, str, Any]] = []
    for name in columns:
        odd += [
            (f"{name} as numbers", name, pa.array(range(count))),
            (f"{name} as text", name, pa.array(["x"] * count)),
            (f"{name} as nulls", name, pa.nulls(count)),
            (f"{name} as null numbers", name, pa.nulls(count, pa.int32())),
            (f"{name} as floats", name, pa.array([0.5] * count)),
            (f"{name} as short bytes", name, pa.array([b"xy"] * count, pa.binary(2))),
            (f"{name} as any bytes", name, pa.array([b"x" * width] * count)),
            (f"{name} as null bytes", name, pa.nulls(count, pa.binary(width))),
            (f"{name} as ragged lists", name, pa.array([[1] * (i % 3) for i in range(count)])),
            (f"{name} as empty lists", name, pa.array([[]] * count, pa.list_(pa.int32()))),
            (f"{name} as text lists", name, pa.array([["a"]] * count)),
            (f"{name} as lists with nulls", name, pa.array([[None, 1]] * count)),
            (f"{name} as null lists", name, pa.nulls(count, pa.list_(pa.int32(), 32))),
            (f"{name} as huge numbers", name, pa.array([2**63] * count, pa.uint64())),
            (f"{name} as negative numbers", name, pa.array([-(2**31)] * count)),
        ]
    path = folder / "odd.parquet"
    metadata = table.schema.metadata
    for label, name, column in odd:
        pq.write_table(pa.table(columns | {name: column}).replace_schema_metadata(metadata), path)
        yield label, target, path.read_bytes()
    for name in columns:
        pq.write_table(table.drop([name]), path)
        yield f"without {name}", target, path.read_bytes()
    shapes = [b"", b"5", b"[]", b"null", b"[-1, 8]", b"[1e9]", b'"x"', b"[0, 0]", b"{}", b"[" * 9000,
              b"[1, 1]", b"[4294967296, 4294967296]", b"[true]"]  # fmt: skip
    for shape in shapes:
        changed = {key: shape if key == b"cola.shape" else value for key, value in metadata.items()}
        pq.write_table(table.replace_schema_metadata(changed), path)
        yield f"shape {shape[:20]!r}", target, path.read_bytes()
    pq.write_table(table.replace_schema_metadata(None), path)
    yield "no metadata", target, path.read_bytes()
    pq.write_table(table.slice(0, 0), path)
    yield "no rows", target, path.read_bytes()
    path.unlink()


def _sql(folder: Path) -> Any:
    from cola_cli.artifacts.catalog import query

    tables = ("parts", "records", "manifest", "files")
    return [query([folder], f"select * from {name}") for name in tables]


def _weights() -> list[Parser]:
    released = "artifacts/released"
    dit, vae = "cola_dlm/cola_dit", "cola_dlm/cola_vae"
    vae_weights = Parser(
        "weights in artifacts",
        "artifacts/prior",
        {"vae/model.safetensors": "safetensors", "prior/model.safetensors": "safetensors"},
        _networks,
        seal_artifact,
    )
    steps = f"checkpoints/step-{STEP:08d}"
    names = {
        "tensors.safetensors": "safetensors",
        "state.json": "json",
        "COMMITTED.json": "json",
    }
    saved = Parser(
        "training checkpoints",
        "artifacts",
        {f"{steps}/{name}": kind for name, kind in names.items()},
        _checkpoint,
        seal_checkpoint,
    )
    return [
        Parser(
            "safetensors headers",
            released,
            {f"{vae}/model-00001-of-00005.safetensors": "safetensors"},
            lambda folder: _tensors(folder / vae),
            extra=_odd_tensors,
        ),
        Parser(
            "safetensors index",
            released,
            {f"{vae}/model.safetensors.index.json": "json"},
            lambda folder: _tensors(folder / vae),
        ),
        Parser(
            "released config.json",
            released,
            {f"{vae}/config.json": "json", f"{dit}/config.json": "json"},
            _released,
        ),
        Parser(
            "released weights",
            released,
            {f"{dit}/model-00001-of-00007.safetensors": "safetensors"},
            _released,
        ),
        Parser(
            "config.json in artifacts",
            "artifacts/prior",
            {"vae/config.json": "json", "prior/config.json": "json"},
            _networks,
            seal_artifact,
        ),
        vae_weights,
        unsealed(vae_weights, "weights in artifacts, digests left"),
        saved,
        unsealed(saved, "training checkpoints, digests left"),
    ]


def _tensors(folder: Path) -> Any:
    from cola_cli.weights.tensors import read_tensors

    return {name: tuple(tensor.shape) for name, tensor in read_tensors(folder).items()}


def _odd_tensors(folder: Path) -> Iterator[Case]:
    """Headers written by hand: extents that overlap, leave holes, go backwards or past the end."""
    import json
    import struct

    target = "cola_dlm/cola_vae/model-00001-of-00005.safetensors"
    four = {"dtype": "F32", "shape": [4]}
    headers: dict[str, Any] = {
        "overlap": {"a": four | {"data_offsets": [0, 16]}, "b": four | {"data_offsets": [8, 24]}},
        "the same bytes": {
            "a": four | {"data_offsets": [0, 32]},
            "b": four | {"data_offsets": [0, 32]},
        },
        "a hole": {"a": four | {"data_offsets": [0, 16]}, "b": four | {"data_offsets": [24, 40]}},
        "backwards": {
            "a": four | {"data_offsets": [16, 0]},
            "b": four | {"data_offsets": [16, 32]},
        },
        "negative": {"a": four | {"data_offsets": [-16, 0]}, "b": four | {"data_offsets": [0, 16]}},
        "past the end": {"a": four | {"data_offsets": [0, 2**40]}},
        "a shape too large": {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}},
        "a shape that overflows": {
            "a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 16]}
        },
        "empty of great shape": {
            "a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}
        },
        "a negative shape": {"a": {"dtype": "F32", "shape": [-4, -1], "data_offsets": [0, 16]}},
        "an unknown type": {"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}},
        "metadata alone": {"__metadata__": {"a": "b"}},
        "metadata of numbers": {"__metadata__": {"a": 5}, "a": four | {"data_offsets": [0, 16]}},
    }
    for dtype, size in [
        ("BOOL", 1), ("U8", 1), ("I8", 1), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1), ("F4", 1),
        ("F6_E2M3", 1), ("I16", 2), ("U16", 2), ("U32", 4), ("U64", 8), ("F64", 8), ("C64", 8),
    ]:  # fmt: skip
        headers[f"type {dtype}"] = {
            "a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8 * size]}
        }
    for label, header in headers.items():
        ends = [e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"]
        text = json.dumps(header).encode()
        body = bytes(min(max(ends, default=0), 64))
        yield label, target, struct.pack("<Q", len(text)) + text + body
    source = random.Random(0)
    for size in (100, 10_000):
        text = b'{"' + b"a" * size + b'": ' + bytes(source.choices(b'[]{}",:0', k=size)) + b"}"
        yield f"{size} characters", target, struct.pack("<Q", len(text)) + text


def _released(folder: Path) -> Any:
    from cola_cli.weights.released import read_checkpoint

    vae, prior = read_checkpoint(folder)
    return vae.config, prior.config


def _networks(folder: Path) -> Any:
    from cola_cli.artifacts import Artifact
    from cola_cli.weights.artifact import load_prior, load_vae

    artifact = Artifact.open(folder, "prior")
    return load_vae(artifact).config, load_prior(artifact).config


def _checkpoint(folder: Path) -> Any:
    import torch

    from cola_cli.training.checkpoints import latest

    found = latest(folder / "checkpoints")
    assert found is not None
    shapes = {"model.linear.weight": (2, 3), "model.linear.bias": (2,)}
    shapes |= {"optimizer.linear.weight:exp_avg": (2, 3), "optimizer.linear.bias:step": ()}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    found.load(tensors)
    values = {name: tensor.tolist() for name, tensor in tensors.items()}
    return found.step, dict(found.state), found.names("optimizer"), values
