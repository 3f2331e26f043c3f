"""Numbers that are not numbers, and ids without a token, are found where they enter."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from cola_cli.artifacts.files import sha256_bytes
from cola_cli.artifacts.manifest import FileRecord, read_manifest, signed_json, write_manifest
from cola_cli.artifacts.parts import read_part_record
from cola_cli.cli.main import app
from tests.stages.conftest import OPTIM, TRAIN, assignments, prior_settings, vae_settings

SMALL = {"steps": 4, "validate_every": 4}
ROW = 2  # of the part, that is harmed
TRANSFORMER = ["dim=32", "ffn_dim=64", "heads=2", "head_dim=16", "layers=1"]


def cola(*arguments: object) -> int:
    """The exit code of `cola` in this process."""
    with pytest.raises(SystemExit) as end:
        app([str(word) for word in arguments])
    return int(end.value.code or 0)


def resign(artifact: Path, changed: dict[str, bytes]) -> None:
    """Put other bytes into a finished artifact, with every digest right."""
    manifest = read_manifest(artifact)
    for name, data in list(changed.items()):
        if name.startswith("parts/"):
            record = artifact / name.replace(".parquet", ".json")
            part = read_part_record(record).model_copy(
                update={"bytes": len(data), "sha256": sha256_bytes(data)}
            )
            changed[record.relative_to(artifact).as_posix()] = signed_json(part)
    files = []
    for record in manifest.files:
        data = changed.get(record.path)
        if data is None:
            files.append(record)
            continue
        (artifact / record.path).write_bytes(data)
        files.append(FileRecord(path=record.path, bytes=len(data), sha256=sha256_bytes(data)))
    write_manifest(artifact, manifest.model_copy(update={"files": files}))


def harm_part(artifact: Path, split: str, change: Callable[[pa.Table], pa.Table]) -> str:
    """Change the table of the first part of a split; the part's name."""
    records = (read_part_record(path) for path in sorted((artifact / "parts").glob("*.json")))
    part = next(p for p in records if p.statistics["split"] == split and p.rows > ROW)
    buffer = io.BytesIO()
    pq.write_table(change(pq.read_table(artifact / part.file)), buffer)
    resign(artifact, {part.file: buffer.getvalue()})
    return part.file


def with_token(value: int) -> Callable[[pa.Table], pa.Table]:
    """One token of row ROW is `value`."""

    def change(table: pa.Table) -> pa.Table:
        rows = table.column("tokens").to_pylist()
        rows[ROW][3] = value
        column = pa.array(rows, table.schema.field("tokens").type)
        return table.set_column(0, table.schema.field("tokens"), column)

    return change


def with_half(name: str, value: float) -> Callable[[pa.Table], pa.Table]:
    """One number of a posterior of row ROW is `value`."""

    def change(table: pa.Table) -> pa.Table:
        blobs = table.column(name).to_pylist()
        halves = np.frombuffer(blobs[ROW], np.float16).copy()
        halves[5] = value
        blobs[ROW] = halves.tobytes()
        place = table.column_names.index(name)
        column = pa.array(blobs, table.schema.field(name).type)
        return table.set_column(place, table.schema.field(name), column)

    return change


def copied(made: Path, name: str, folder: Path) -> Path:
    """A copy of an artifact that may be harmed."""
    return Path(shutil.copytree(made / name, folder / name))


def baseline_flags() -> list[str]:
    """Settings of a baseline of a few thousand weights."""
    tables = {"optim": OPTIM, "train": TRAIN | SMALL}
    flags = [f"{table}.{n}={v}" for table, values in tables.items() for n, v in values.items()]
    return [
        word for flag in [*flags, *(f"model.{s}" for s in TRANSFORMER)] for word in ("--set", flag)
    ]


@pytest.mark.parametrize("value", [-1, 300, 1_000_000])
@pytest.mark.parametrize("stage", ["train vae", "train ar", "train llada", "encode"])
def test_token_ids_out_of_range_are_named_with_file_and_row(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], stage: str, value: int
) -> None:
    tokens = copied(made, "tokens", tmp_path)
    part = harm_part(tokens, "train", with_token(value))
    flags = ["--vae", str(made / "vae")] if stage == "encode" else baseline_flags()
    if stage == "train vae":
        flags = assignments(vae_settings(**SMALL))
    code = cola(*stage.split(), tokens, "-o", tmp_path / "out", "--device", "cpu", *flags)
    told = capfd.readouterr().err
    assert code == 5, told
    assert f"{part}: row {ROW} has token ids outside" in told
    assert read_manifest(tmp_path / "out").status == "incomplete"


@pytest.mark.parametrize("value", [-1, 300])
def test_token_ids_out_of_range_can_be_looked_at(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], value: int
) -> None:
    tokens = copied(made, "tokens", tmp_path)
    harm_part(tokens, "train", with_token(value))
    assert cola("inspect", tokens) == 0, capfd.readouterr().err


@pytest.mark.parametrize("stage", ["train prior", "distill"])
def test_a_variance_beyond_float32_is_named_with_file_and_row(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], stage: str
) -> None:
    latents, prior = copied(made, "latents", tmp_path), tmp_path / "prior"
    flags = assignments(prior_settings(**SMALL, validation_sequences=10_000))
    assert cola("train", "prior", latents, "-o", prior, "--device", "cpu", *flags) == 0
    part = harm_part(latents, "validation", with_half("logvar", 88.75))
    command = ["train", "prior", latents, *flags]
    if stage == "distill":
        few = [f"train.{name}={value}" for name, value in (SMALL | {"batch_size": 2}).items()]
        command = ["distill", prior, latents, "--set", "train.validation_sequences=10000"]
        command += ["--passes", "2", *(word for one in few for word in ("--set", one))]
    code = cola(*command, "-o", tmp_path / "out", "--device", "cpu")
    told = capfd.readouterr().err
    assert code == 5, told
    assert f"{part}: row {ROW} has values in logvar whose variance is infinite" in told


def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--set", "model.dim=16384", "--set", "model.layers=1000", "--set", "model.heads=128"]
    command = ["train", "ar", made / "tokens", "-o", tmp_path / "out", "--device", "cpu", *sizes]
    assert cola(*command) == 2
    assert "for weights, gradients and moments alone; this machine has" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_batch_that_no_memory_holds_is_refused_before_it_is_read(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "ar", made / "tokens", "-o", tmp_path / "out", "--device", "cpu"]
    sizes = ["model.dim=32", "model.layers=1", "model.heads=2", f"train.batch_size={10**12}"]
    assert cola(*command, *(word for size in sizes for word in ("--set", size))) == 2
    assert "sequences a step take" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(("column", "value"), [("mean", np.nan), ("logvar", np.inf)])
def test_latents_that_are_not_finite_are_named_with_file_and_row(
    made: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    split: str,
    column: str,
    value: float,
) -> None:
    latents = copied(made, "latents", tmp_path)
    part = harm_part(latents, split, with_half(column, value))
    command = ["train", "prior", latents, "-o", tmp_path / "out", "--device", "cpu"]
    code = cola(*command, *assignments(prior_settings(**SMALL, validation_sequences=10_000)))
    told = capfd.readouterr().err
    assert code == 5, told
    assert f"{part}: row {ROW} has values in {column} that are not finite numbers" in told


def with_nan(artifact: Path, network: str) -> str:
    """Put one NaN into the last weights of a network of an artifact; their name."""
    name = f"{network}/model.safetensors"
    weights = {key: value.clone() for key, value in load_file(artifact / name).items()}
    last = max(weights)
    weights[last].view(-1)[-1] = torch.nan
    resign(artifact, {name: save(weights)})
    return last


@pytest.mark.parametrize("network", ["vae", "prior"])
@pytest.mark.parametrize("head", ["velocity", "tokens"])
def test_weights_that_are_not_numbers_are_named_by_whatever_reads_them(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], network: str, head: str
) -> None:
    prior, latents = tmp_path / "prior", made / "latents"
    flags = [*assignments(prior_settings(**SMALL)), "--set", f"model.prediction={head}"]
    assert cola("train", "prior", latents, "-o", prior, "--device", "cpu", *flags) == 0
    weights = with_nan(prior, network)
    (tmp_path / "out").mkdir()
    for words in (
        ["sample", prior, "-p", "Anna"],
        ["likelihood", prior, "--text", "Anna"],
        ["distill", prior, latents, "--passes", "2", "-o", tmp_path / "out" / "student"],
        ["train", "prior", latents, "--from", prior, "-o", tmp_path / "out" / "prior", *flags],
        ["encode", made / "tokens", "--vae", prior, "-o", tmp_path / "out" / "latents"],
        ["export", prior, "-o", tmp_path / "out" / "export"],
    ):
        if words[0] == "encode" and network == "prior":
            continue  # reads the VAE alone
        capfd.readouterr()
        device = [] if words[0] == "export" else ["--device", "cpu"]
        assert cola(*words, *device) == 5, words
        told = capfd.readouterr().err
        assert f"the weights {weights} hold infinity or NaN" in told, told
    assert not [*tmp_path.glob("out/*/*/*.safetensors")]


def test_a_likelihood_that_is_not_a_number_is_an_error(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prior, name = tmp_path / "prior", "prior/model.safetensors"
    flags = assignments(prior_settings(**SMALL))
    assert cola("train", "prior", made / "latents", "-o", prior, "--device", "cpu", *flags) == 0
    large = {k: v.mul(1e30) if "out" in k else v for k, v in load_file(prior / name).items()}
    resign(prior, {name: save(large)})
    assert cola("likelihood", prior, "--text", "Anna", "--device", "cpu") == 4
    told = capfd.readouterr()
    assert "is not a finite number: those of the model overflow" in told.err


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda w: w.mul_(1e30), "not finite numbers for row 0 of"),
        (lambda w: w.zero_(), "carry no information"),
    ],
)
def test_encode_refuses_a_vae_that_says_nothing(
    made: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    harm: Callable[[torch.Tensor], Any],
    words: str,
) -> None:
    vae = copied(made, "vae", tmp_path)
    name = "vae/model.safetensors"
    weights = load_file(vae / name)
    for key in weights:
        if key.startswith("posterior_out"):
            harm(weights[key])
    save_file(weights, tmp_path / "harmed.safetensors")
    resign(vae, {name: (tmp_path / "harmed.safetensors").read_bytes()})
    out = tmp_path / "out"
    code = cola("encode", made / "tokens", "--vae", vae, "-o", out, "--device", "cpu")
    told = capfd.readouterr().err
    assert code == 4, told
    assert words in told
    assert read_manifest(out).status == "incomplete"


@pytest.mark.parametrize("again", [1, 2])
def test_a_run_whose_steps_were_all_skipped_is_not_done(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], again: int
) -> None:
    # Every norm is a spike once the average is known, which no step before it has changed.
    settings = assignments(vae_settings(**SMALL, on_bad_step="skip"))
    command = ["train", "vae", made / "tokens", "-o", tmp_path / "out", "--device", "cpu"]
    flags = [*settings, "--set", "optim.clip=0", "--set", "loss.beta=1e39"]
    for _ in range(again):
        code = cola(*command, *flags)
        told = capfd.readouterr().err
        assert code == 6, told
    assert read_manifest(tmp_path / "out").status == "incomplete"


def test_a_loss_that_diverges_has_an_exit_code_of_its_own(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "vae", made / "tokens", "-o", tmp_path / "out", "--device", "cpu"]
    flags = assignments(vae_settings(**SMALL))
    code = cola(*command, *flags, "--set", "optim.lr=1e30", "--set", "optim.lr_start=1e30")
    told = capfd.readouterr().err
    assert code == 6, told
    assert "a fault in cola" not in told


@pytest.mark.parametrize(("head_dim", "rope_dim"), [(5, 4), (4, 3), (4, 6)])
def test_heads_that_cannot_be_rotated_are_errors_of_settings(
    made: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    head_dim: int,
    rope_dim: int,
) -> None:
    sizes = [f"model.head_dim={head_dim}", f"model.rope_dim={rope_dim}", "model.heads=3"]
    flags = [word for size in sizes for word in ("--set", size)]
    command = ["train", "prior", made / "latents", "-o", tmp_path / "out", "--device", "cpu"]
    assert cola(*command, *flags) == 2
    assert "dim" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def with_statistics(artifact: Path, **changed: object) -> None:
    """Put other statistics into a manifest, with its digest right."""
    manifest = read_manifest(artifact)
    statistics = manifest.statistics | changed
    write_manifest(artifact, manifest.model_copy(update={"statistics": statistics}))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("latents", {"channel_mean": []}),
        ("latents", {"channel_variance": [1.0] * 9}),
        ("latents", {"posterior_variance": [1.0] * 7}),
        ("latents", {"latent_shape": [32, 4], "channel_mean": [0.0] * 4,
                     "channel_variance": [1.0] * 4, "posterior_variance": [1.0] * 4}),
        ("latents", {"latent_shape": [16, 8]}),
        ("latents", {"seq_len": 16, "latent_shape": [16, 8]}),
        ("tokens", {"seq_len": 16}),
        ("tokens", {"seq_len": 33}),
        ("tokens", {"seq_len": 10**12}),
    ],
)  # fmt: skip
def test_statistics_that_are_not_those_of_the_rows_are_named(
    made: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    changed: dict[str, object],
) -> None:
    artifact = copied(made, name, tmp_path)
    with_statistics(artifact, **changed)
    commands = {
        "latents": [["train", "prior", artifact, *assignments(prior_settings(**SMALL))]],
        "tokens": [
            ["train", "vae", artifact, *assignments(vae_settings(**SMALL))],
            ["train", "ar", artifact, *baseline_flags()],
            ["encode", artifact, "--vae", made / "vae"],
        ],
    }
    for command in commands[name]:
        assert cola(*command, "-o", tmp_path / "out", "--device", "cpu") == 5
        told = capfd.readouterr().err
        assert str(artifact) in told
        assert next(iter(changed)) in told or "Text VAE" in told, told
