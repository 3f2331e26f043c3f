"""cola encode: tokens and a Text VAE -> the posterior of every sequence, part by part."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cola_cli.artifacts import Artifact, Identity, Output, PartRecord, Writer
from cola_cli.artifacts.artifact import is_artifact
from cola_cli.artifacts.files import arrow_file
from cola_cli.artifacts.kinds import TOKENIZER, Latents, LatentsPart, LatentsStatistics, Tokens
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.artifacts.parts import write_part
from cola_cli.artifacts.tensors import FORMS
from cola_cli.corpus.additions import ancestors
from cola_cli.errors import InputError
from cola_cli.machine import interruption
from cola_cli.machine.threads import describe_environment, prepare_torch
from cola_cli.models.config import TextVAEConfig
from cola_cli.reporting import Reporter
from cola_cli.settings import result_settings
from cola_cli.settings.encode import EncodeSettings
from cola_cli.stages.run import Outcome, Run, open_output, up_to_date
from cola_cli.stages.shards import WHOLE, Shard, make_artifact, refuse_sharing

if TYPE_CHECKING:
    import torch

    from cola_cli.corpus.sequences import Rows
    from cola_cli.models.text_vae import TextVAE

STAGE = "encode"


def encode(
    tokens_path: Path,
    vae_path: Path,
    output_path: Path,
    settings: EncodeSettings,
    run: Run | None = None,
    shard: Shard = WHOLE,
) -> Outcome:
    """Write mean and log-variance of q(z_0 | x) for every sequence of a tokens artifact.

    Part i of the latents comes from part i of the tokens. With `shard` (i, n) only the parts with
    index = i modulo n are made, beside other processes that make theirs; a run without it makes what is
    missing and commits the artifact. Under torchrun every process takes its shard and the first commits.
    """
    run = run or Run()
    reporter = run.reporter
    tokens = Tokens.open(tokens_path)
    vae_artifact = open_encoder(tokens, vae_path)
    inputs = {"tokens": tokens.manifest.fingerprint, "vae": vae_artifact.manifest.fingerprint}
    reads = (tokens_path, vae_path)
    if old := _latents_before(output_path, tokens, inputs, settings):
        refuse_sharing("Encoding what was added to tokens", shard)
        run = replace(run, overwrite=True)
    output = open_output(output_path, "latents", STAGE, settings, inputs, run, reads)
    if output.up_to_date:
        return up_to_date(output)
    chosen = prepare_torch(run.threads, output.recorded_environment.get("threads"))

    import torch

    from cola_cli.machine.processes import joined
    from cola_cli.weights.artifact import load_vae

    torch.use_deterministic_algorithms(True, warn_only=True)
    with joined(run.device, settings.timeout) as world:
        shard = (world.rank, world.size) if world.size > 1 else shard
        reporter.note(str(chosen))
        environment = describe_environment(chosen) | {"device": str(world.device)}
        vae = load_vae(vae_artifact).to(world.device).eval()

        def begin(writer: Writer) -> None:
            if old:
                writer.take_over(old)

        def make(done: Collection[int], own: Shard) -> None:
            mine = [tokens.part(index) for index in range(own[0], tokens.part_count, own[1])]
            rows = sum(part.rows for part in mine if part.index in done)
            reporter.start("encode", sum(part.rows for part in mine), "sequences", rows)
            for part in mine:
                if part.index not in done:
                    _encode_part(
                        tokens, part, output, vae, settings, world.device, reporter, own != WHOLE
                    )
                    interruption.check()
            reporter.stop()

        def finish(writer: Writer) -> dict[str, Any]:
            for name in Latents.FILES:
                source = tokens if name == TOKENIZER else vae_artifact
                writer.write(name, source.file(name).read_bytes())
            shape = latent_shape(tokens, vae.config)
            statistics = _statistics(writer, tokens, shape)
            return statistics.model_dump(mode="json", exclude_none=True)

        return make_artifact(output, environment, run, shard, make, finish, begin, world)


def _latents_before(
    path: Path, tokens: Tokens, inputs: dict[str, str], settings: EncodeSettings
) -> Latents | None:
    """The finished latents at `path` that lack only those of text that was added to the tokens."""
    if not is_artifact(path):
        return None
    found = read_manifest(path)
    wanted = Identity(stage=STAGE, settings=result_settings(settings), inputs=inputs)
    for fingerprint in ancestors(tokens.manifest.identity):
        before = wanted.model_copy(update={"inputs": inputs | {"tokens": fingerprint}})
        if found.status == "complete" and found.identity == before:
            return Latents.open(path)
    return None


def latent_shape(tokens: Tokens, config: TextVAEConfig) -> tuple[int, int]:
    """(N, d) of one sequence."""
    return tokens.statistics.seq_len // config.patch_size, config.latent_dim


def open_encoder(tokens: Artifact, path: Path) -> Artifact:
    """The vae or prior artifact whose Text VAE encodes these tokens.

    Raises InputError unless it is one, and was trained on the tokenizer of the tokens.
    """
    found = Artifact.open(path)
    vae = found if found.manifest.kind == "prior" else Artifact.open(path, "vae")
    if not vae.has(TOKENIZER):
        raise InputError(
            f"{path} holds no tokenizer, so it is not known whether {tokens.path} has its tokens.",
            "Put its tokenizer.json beside the checkpoint, and import that again.",
        )
    if tokens.file(TOKENIZER).read_bytes() != vae.file(TOKENIZER).read_bytes():
        raise InputError(
            f"{vae.path} was trained with a tokenizer that is not that of {tokens.path}.",
            "Tokenize with that tokenizer.json, or train a VAE on these tokens.",
        )
    return vae


def _encode_part(
    tokens: Tokens,
    part: PartRecord,
    output: Output,
    vae: TextVAE,
    settings: EncodeSettings,
    device: torch.device,
    reporter: Reporter,
    shared: bool,
) -> None:
    from cola_cli.corpus.sequences import FORM, SHAPE, require_sound, rows_of

    path = tokens.part_file(part.index)
    source = arrow_file(path)
    file = pq.ParquetFile(source)
    first = 0
    shape = latent_shape(tokens, vae.config)
    forms = FORMS[settings.stored]
    schema = file.schema_arrow
    for name, form in forms.items():
        schema = schema.append(pa.field(name, pa.binary(form.width(*shape))))
    metadata = (schema.metadata or {}) | {SHAPE: json.dumps(shape).encode()}
    if settings.stored != "float16":
        metadata[FORM] = settings.stored.encode()
    schema = schema.with_metadata(metadata)
    sums = Sums(shape[1])
    with (
        source,
        write_part(
            output.place,
            part.index,
            output.identity,
            source=part.file,
            shared=shared,
        ) as out,
        _writer(out.path, schema, settings) as to,
    ):
        for group in file.iter_batches(batch_size=settings.rows_per_group):
            rows = rows_of(pa.Table.from_batches([group]), 0)
            require_sound(rows, path, first, tokens.statistics)
            mean, logvar = _posterior(rows, vae, settings, device)
            _require_finite(mean, logvar, path, first)
            found = zip(forms.values(), (mean, logvar), strict=True)
            blobs = [(form, form.encode(values)) for form, values in found]
            mean, logvar = (form.decode(blob, *shape) for form, blob in blobs)  # as it is read back
            # positions that hold any text
            sums.add(mean, logvar, rows.is_text[:, :: vae.config.patch_size])
            first += len(group)
            columns = [*group.columns, *(blob_column(blob) for _, blob in blobs)]
            to.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            reporter.advance(len(group))
        out.rows, out.tokens = part.rows, part.tokens
        out.statistics = part.statistics | sums.as_dict()


@contextlib.contextmanager
def _writer(path: Path, schema: pa.Schema, settings: EncodeSettings) -> Iterator[Any]:
    with (
        arrow_file(path, "wb") as stream,
        pq.ParquetWriter(
            stream,
            schema,
            compression="zstd",
            compression_level=settings.compression_level,
            use_dictionary=False,
        ) as writer,
    ):
        yield writer


def _posterior(
    rows: Rows, vae: TextVAE, settings: EncodeSettings, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log-variance of some sequences, each (B, N, d) float16."""
    import torch

    from cola_cli.models.attention import apart

    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
    means, logvars = [], []
    for start in range(0, len(rows), settings.batch_size):
        some = rows.take(slice(start, start + settings.batch_size))
        ids = torch.from_numpy(some.tokens).to(device)
        found = some.position_pieces(vae.config.patch_size)
        pieces = None if found is None else torch.from_numpy(found).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            posterior = vae.encode(ids, None, apart(pieces, vae.config.block_size))
        means.append(posterior.mean.half().cpu().numpy())
        logvars.append(posterior.logvar.half().cpu().numpy())
    return np.concatenate(means), np.concatenate(logvars)


def _require_finite(mean: np.ndarray, logvar: np.ndarray, path: Path, first: int) -> None:
    """Raise InputError naming the sequence whose posterior is not finite in half precision."""
    with np.errstate(over="ignore"):
        variance = np.exp(logvar, dtype=np.float32)
    sound = (np.isfinite(mean) & np.isfinite(logvar) & np.isfinite(variance)).all((1, 2))
    if not sound.all():
        row = first + int(sound.argmin())
        raise InputError(
            f"the Text VAE gives latents that are not finite numbers for row {row} of {path}.",
            "Its training has diverged, or its weights are damaged: train it again.",
        )


def blob_column(blobs: np.ndarray) -> pa.Array:
    """A column of rows of bytes (B, bytes)."""
    data = pa.py_buffer(np.ascontiguousarray(blobs))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(blobs.shape[1]), len(blobs), [None, data])


class Sums:
    """Sums over latent positions from which the statistics of the channels follow."""

    def __init__(self, channels: int) -> None:
        self.positions = 0
        self.mean, self.square, self.variance = (np.zeros(channels) for _ in range(3))

    def add(self, mean: np.ndarray, logvar: np.ndarray, filled: np.ndarray) -> None:
        """Count the filled positions of mean and logvar (B, N, d); filled (B, N) bool."""
        means, logvars = mean[filled].astype(np.float64), logvar[filled].astype(np.float64)
        self.positions += len(means)
        self.mean += means.sum(0)
        self.square += (means**2).sum(0)
        self.variance += np.exp(logvars).sum(0)

    def as_dict(self) -> dict[str, Any]:
        """For the record of a part."""
        return {f"latent_{name}": np.array(value).tolist() for name, value in vars(self).items()}


def _statistics(writer: Writer, tokens: Tokens, shape: tuple[int, int]) -> LatentsStatistics:
    """Totals, and per channel the mean and variance of the means and the mean posterior variance."""
    path, records = writer.path, writer.recorded()
    parts = [LatentsPart.of(record.statistics, path / record.file) for record in records]
    positions = sum(part.latent_positions for part in parts)
    mean, square, variance = (
        np.sum([getattr(part, f"latent_{name}") for part in parts], axis=0) / positions
        for name in ("mean", "square", "variance")
    )
    if not 0 < square.mean() < math.inf or not 0 < variance.mean() < math.inf:
        raise InputError(
            f"the latents in {path} carry no information: their mean square is {square.mean():.3g}, their"
            f" variance {variance.mean():.3g}.",
            "The Text VAE was not trained, or its training has diverged: train it again.",
        )
    packed = tokens.statistics
    return LatentsStatistics(
        rows=sum(record.rows for record in records),
        tokens=sum(record.tokens for record in records),
        latent_shape=shape,
        log_snr=math.log(float(square.mean() / variance.mean())),
        channel_mean=mean.tolist(),
        channel_variance=(square - mean**2).tolist(),
        posterior_variance=variance.tolist(),
        seq_len=packed.seq_len,
        vocab_size=packed.vocab_size,
        pad_id=packed.pad_id,
        end_of_text_id=packed.end_of_text_id,
        chat_template=packed.chat_template,
        separate=packed.separate,
    )


def plan_encode(tokens_path: Path, vae_path: Path, settings: EncodeSettings) -> dict[str, Any]:
    """The cost of encoding. Touches nothing."""
    from cola_cli.cost import training as flops
    from cola_cli.weights.configs import vae_config

    tokens = Tokens.open(tokens_path)
    vae_artifact = open_encoder(tokens, vae_path)
    config = vae_config(vae_artifact)
    length = tokens.statistics.seq_len
    rows = sum(part.rows for part in tokens.parts)
    forms = FORMS[settings.stored].values()
    return {
        "sequences": rows,
        "parts": len(tokens.parts),
        "flops": flops.text_vae_encoding(config, rows, length),
        "latent_bytes": rows * sum(form.width(*latent_shape(tokens, config)) for form in forms),
    }
