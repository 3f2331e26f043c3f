"""cola encode: killed, sharded, checked against the encoder, flat in memory, and refused inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cola_cli.artifacts.kinds import Latents, Tokens
from cola_cli.corpus.sequences import FORM, SHAPE, Sequences
from cola_cli.errors import DamagedArtifact, InputError
from cola_cli.families import PRIOR, TEXT_VAE
from cola_cli.settings.encode import EncodeSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.train import train
from cola_cli.weights.artifact import load_vae
from tests.conftest import CPU, Run, content
from tests.stages.conftest import SEQ_LEN, make_tokens, prior_settings, vae_settings
from tests.stages.killing import assert_same_manifest, kill_until_done


def run_encode(made: Path, output: Path, **options: object) -> dict[str, object]:
    settings = EncodeSettings()
    tokens, vae = made / "tokens", made / "vae"
    return encode(tokens, vae, output, settings, CPU, **options).statistics


@pytest.mark.slow
def test_killed_again_and_again_the_latents_are_the_same_to_the_byte(
    made: Path, tmp_path: Path
) -> None:
    tokens = make_tokens(tmp_path, documents=12_000)
    train(TEXT_VAE, tokens, tmp_path / "vae", vae_settings(steps=8), CPU)
    encode(tokens, tmp_path / "vae", tmp_path / "quiet", EncodeSettings(), CPU)
    command = ["encode", str(tokens), "--vae", str(tmp_path / "vae"), "--device", "cpu"]
    command += ["-o", str(tmp_path / "killed")]
    kill_until_done(command, "thread", kills=5, span=0.5, seed=2)
    assert content(tmp_path / "killed") == content(tmp_path / "quiet")
    assert_same_manifest(tmp_path / "killed", tmp_path / "quiet")


def test_latents_are_the_encoders_posterior_row_for_row(made: Path) -> None:
    latents = Latents.open(made / "latents")
    tokens = Tokens.open(made / "tokens")
    assert [p.rows for p in latents.parts] == [p.rows for p in tokens.parts]
    vae = load_vae(latents)
    for split in ("train", "validation"):
        stored = Sequences(latents, split).read(0, 10)
        source = Sequences(tokens, split).read(0, 10)
        np.testing.assert_array_equal(stored.tokens, source.tokens)
        np.testing.assert_array_equal(stored.lengths, source.lengths)
        with torch.no_grad():
            posterior = vae.encode(torch.from_numpy(source.tokens))
        assert stored.mean is not None
        assert stored.logvar is not None
        np.testing.assert_allclose(stored.mean, posterior.mean.numpy(), atol=2e-3)
        np.testing.assert_allclose(stored.logvar, posterior.logvar.numpy(), atol=2e-2)


def test_the_manifest_has_the_statistics_of_the_channels(made: Path) -> None:
    require_statistics(Latents.open(made / "latents"))


def require_statistics(latents: Latents) -> None:
    means, variances = [], []
    for split in ("train", "validation"):
        for rows in Sequences(latents, split).batches(64):
            assert rows.mean is not None
            assert rows.logvar is not None
            filled = np.arange(SEQ_LEN) < rows.lengths[:, None]
            means.append(rows.mean[filled].astype(np.float64))
            variances.append(np.exp(rows.logvar[filled].astype(np.float64)))
    mean, variance = np.concatenate(means), np.concatenate(variances)
    statistics = latents.manifest.statistics
    assert statistics["latent_shape"] == [SEQ_LEN, 8]
    np.testing.assert_allclose(statistics["channel_mean"], mean.mean(0), atol=1e-9)
    np.testing.assert_allclose(statistics["channel_variance"], mean.var(0), atol=1e-9)
    np.testing.assert_allclose(statistics["posterior_variance"], variance.mean(0), rtol=1e-9)
    log_snr = np.log((mean**2).mean() / variance.mean())
    assert statistics["log_snr"] == pytest.approx(log_snr, rel=1e-6)


def test_latents_are_fixed_size_half_precision_with_their_shape_beside(made: Path) -> None:
    latents = Latents.open(made / "latents")
    schema = pq.read_schema(latents.part_file(0))
    assert json.loads(schema.metadata[SHAPE]) == [SEQ_LEN, 8]
    for name in ("mean", "logvar"):
        assert schema.field(name).type.byte_width == 2 * SEQ_LEN * 8


def test_latents_are_numbers_in_sql_and_have_their_shape_in_inspect(made: Path, cola: Run) -> None:
    query = "select mean, logvar from latents.posterior limit 3"
    rows = json.loads(cola("sql", query, made / "latents", "--json").stdout)["rows"]
    part = Latents.open(made / "latents").parts[0]
    stored = Sequences(Latents.open(made / "latents"), part.statistics["split"]).read(0, 3)
    assert stored.mean is not None
    assert stored.logvar is not None
    np.testing.assert_array_equal([row[0] for row in rows], stored.mean.astype(np.float32))
    np.testing.assert_array_equal([row[1] for row in rows], stored.logvar.astype(np.float32))
    flat = cola("sql", "select half_list(mean)[1:2] from parts limit 1", made / "latents", "--json")
    assert json.loads(flat.stdout)["rows"][0][0] == rows[0][0][0][:2]
    seen = json.loads(cola("inspect", made / "latents", "--json").stdout)
    assert {"column": "mean", "type": f"HALF[8][{SEQ_LEN}]"} in seen["schema"]
    assert seen["rows"] == sum(p.rows for p in Latents.open(made / "latents").parts)
    first = seen["examples"][0]
    assert "<|endoftext|>" in first["text"]
    assert first["length"] == stored.lengths[0]
    assert first["mean"]["deviation"] == pytest.approx(stored.mean[0].astype(np.float64).std())


@pytest.mark.parametrize("stored", ["int8", "mean"])
def test_latents_of_fewer_bits_are_read_as_any_others(
    made: Path, tmp_path: Path, cola: Run, stored: str
) -> None:
    out, d = tmp_path / "out", 8
    command = ["encode", made / "tokens", "--vae", made / "vae", "--device", "cpu"]
    cola(*command, "-o", out, "--set", f"stored={stored}", "--quiet")
    fewer, exact = Latents.open(out), Latents.open(made / "latents")
    assert fewer.manifest.identity.settings == exact.manifest.identity.settings | {"stored": stored}
    columns = pq.read_table(fewer.part_file(0), columns=["mean", "logvar"])
    widths = {"int8": [(SEQ_LEN + 4) * d] * 2, "mean": [(SEQ_LEN + 4) * d, 2 * d]}[stored]
    assert [column.type.byte_width for column in columns.columns] == widths
    read = Sequences(fewer, fewer.parts[0].statistics["split"]).read(0, 5)
    original = Sequences(exact, fewer.parts[0].statistics["split"]).read(0, 5)
    np.testing.assert_array_equal(read.tokens, original.tokens)
    for row in range(5):  # by the documented layout
        blob = columns["mean"][row].as_py()
        low, step = np.frombuffer(blob[: 4 * d], np.float16).reshape(2, d).astype(np.float64)
        levels = np.frombuffer(blob[4 * d :], np.uint8).reshape(SEQ_LEN, d)
        np.testing.assert_allclose(read.mean[row], low + step * levels, rtol=1e-3, atol=1e-3)
        span = original.mean[row].max(0) - original.mean[row].min(0)
        assert (np.abs(read.mean[row] - original.mean[row]) <= 0.6 * span / 255 + 1e-3).all()
    if stored == "mean":
        variance = np.exp(original.logvar.astype(np.float64)).mean(1, keepdims=True)
        expected = np.broadcast_to(np.log(variance), original.logvar.shape)
        np.testing.assert_allclose(read.logvar, expected, atol=1e-3)
    query = "select mean, logvar from posterior limit 5"
    rows = json.loads(cola("sql", query, out, "--json").stdout)["rows"]
    np.testing.assert_array_equal([row[0] for row in rows], read.mean.astype(np.float32))
    np.testing.assert_array_equal([row[1] for row in rows], read.logvar.astype(np.float32))
    seen = json.loads(cola("inspect", out, "--json").stdout)
    kind = f"HALF[{d}]" if stored == "mean" else f"BYTE[{d}][{SEQ_LEN}] and scale"
    assert {"column": "logvar", "type": kind} in seen["schema"]
    assert seen["examples"][0]["mean"]["deviation"] == pytest.approx(
        read.mean[0].astype(float).std()
    )
    require_statistics(fewer)
    cola("verify", out)
    cola(*command, "-o", out, "--quiet", expect=3)
    train(PRIOR, out, tmp_path / "prior", prior_settings(steps=2), CPU)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda t: t.replace_schema_metadata(t.schema.metadata | {FORM: b"int9"}),
            "unknown form 'int9'",
        ),
        (
            lambda t: t.replace_schema_metadata({SHAPE: t.schema.metadata[SHAPE]}),
            "bytes a row, not those of",
        ),
        (lambda t: with_infinite_scale(t), r"row 2 has values in mean that are not finite"),
    ],
)
def test_damaged_latents_of_fewer_bits_are_named(
    made: Path, tmp_path: Path, change: Callable[[pa.Table], pa.Table], problem: str
) -> None:
    settings = EncodeSettings(stored="int8")
    encode(made / "tokens", made / "vae", tmp_path / "out", settings, CPU)
    latents = Latents.open(tmp_path / "out")
    path = latents.part_file(0)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(DamagedArtifact, match=problem) as error:
        Sequences(latents, latents.parts[0].statistics["split"]).read(0, 5)
    assert str(path) in str(error.value)


def with_infinite_scale(table: pa.Table) -> pa.Table:
    blobs = table.column("mean").to_pylist()
    blobs[2] = np.float16(np.inf).tobytes() + blobs[2][2:]
    place = table.schema.get_field_index("mean")
    return table.set_column(
        place, table.schema.field("mean"), pa.array(blobs, table.schema.field("mean").type)
    )


def test_shards_made_apart_and_merged_equal_one_run(made: Path, tmp_path: Path, cola: Run) -> None:
    command = ["encode", made / "tokens", "--vae", made / "vae", "--device", "cpu"]
    for i in (2, 0, 1):  # test_shards.py has them side by side
        cola(*command, "-o", tmp_path / "out", "--shard", f"{i}/3", "--quiet")
    with pytest.raises(InputError, match="not finished"):
        Latents.open(tmp_path / "out")
    run_encode(made, tmp_path / "out")
    assert content(tmp_path / "out") == content(made / "latents")
    assert_same_manifest(tmp_path / "out", made / "latents")


def test_a_vae_of_another_tokenizer_is_an_error(made: Path, tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path, documents=500)
    with pytest.raises(InputError, match="a tokenizer that is not that of"):
        encode(tokens, made / "vae", tmp_path / "out", EncodeSettings(), CPU)


def test_a_flipped_byte_in_the_tokens_is_named(made: Path, tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path, documents=600)
    part = tokens / "parts" / "00002.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    train_on = made / "vae"
    with pytest.raises(DamagedArtifact, match=r"00002\.parquet"):
        encode(tokens, train_on, tmp_path / "out", EncodeSettings(), CPU)


@pytest.mark.xdist_group("memory")
@pytest.mark.slow
def test_ten_times_the_corpus_takes_no_more_memory(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cola_cli.stages.run import Run\n"
        "from cola_cli.machine.threads import peak_memory\n"
        "from cola_cli.settings.encode import EncodeSettings; from cola_cli.stages.encode import encode\n"
        "encode(*map(Path, sys.argv[1:]), EncodeSettings(), Run(device='cpu'))\n"
        "print(peak_memory())"
    )
    peaks = []
    for name, documents in (("small", 2_000), ("large", 20_000)):
        (tmp_path / name).mkdir()
        tokens = make_tokens(tmp_path / name, documents)
        vae = tmp_path / name / "vae"
        train(TEXT_VAE, tokens, vae, vae_settings(steps=2), CPU)
        run = subprocess.run(
            [sys.executable, "-c", code, str(tokens), str(vae), str(tmp_path / name / "latents")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(float(run.stdout))
    assert peaks[1] < 1.2 * peaks[0]
