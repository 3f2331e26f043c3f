"""What cheaper latents cost a prior: bytes on disk, and the validation flow loss of short trainings.

    python tests/bench/stored.py LATENTS [--steps 200] [--batch 4] [--seeds 3] [--json]

Every form trains one prior a seed (two layers of width 96, velocities) on training latents in that form; all
are validated on the same latents in half precision. `change` is the loss less that of float16 with the same
seed, its mean and standard deviation over the seeds. `nudged` is float16 with the last bit of one mean in a
thousand changed: what it changes is noise. `float32` are posteriors computed from the tokens whenever they
are read; its bytes are those that it would take. Bytes are of both columns in Parquet as `cola encode`
writes it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cola_cli.artifacts.kinds import Latents
from cola_cli.artifacts.tensors import FORMS
from cola_cli.corpus.sequences import Rows, Sequences
from cola_cli.families import PRIOR
from cola_cli.settings import resolve
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.stages.encode import blob_column
from cola_cli.stages.run import Run
from cola_cli.stages.train import train
from cola_cli.weights.artifact import load_vae

Pair = tuple[Any, Any]  # mean and log-variance (B, N, d), or their blobs
ENCODE = EncodeSettings()


def pair(rows: Rows) -> Pair:
    return rows.mean, rows.logvar


def encoded(name: str) -> Callable[[Rows], Pair]:
    """The blobs of sequences in a form of cola's."""
    mean, logvar = FORMS[name].values()
    return lambda rows: (mean.encode(pair(rows)[0]), logvar.encode(pair(rows)[1]))


def stored(name: str) -> Callable[[Rows], Pair]:
    """The posterior of sequences as it is read from a form of cola's."""
    mean, logvar = FORMS[name].values()

    def read(rows: Rows) -> Pair:
        blobs, shape = encoded(name)(rows), pair(rows)[0].shape[1:]
        return mean.decode(blobs[0], *shape), logvar.decode(blobs[1], *shape)

    return read


def bfloat16(rows: Rows) -> Pair:
    mean, logvar = (torch.from_numpy(values).bfloat16().float().numpy() for values in pair(rows))
    return mean, logvar


def nudged(rows: Rows) -> Pair:
    mean, logvar = pair(rows)
    bits = mean.copy().view(np.uint16)
    bits.reshape(-1)[::1000] ^= 1
    return bits.view(np.float16), logvar


def float32(latents: Latents) -> Callable[[Rows], Pair]:
    """The posterior of sequences, computed from their tokens."""
    vae = load_vae(latents).eval()

    def compute(rows: Rows) -> Pair:
        few = np.array_split(rows.tokens, 1 + len(rows) // 64)
        with torch.no_grad():
            found = [vae.encode(torch.from_numpy(tokens)) for tokens in few]
        mean, logvar = (
            torch.cat([getattr(one, name) for one in found]) for name in ("mean", "logvar")
        )
        return mean.numpy(), logvar.numpy()

    return compute


def size(latents: Latents, columns: Callable[[Rows], Pair]) -> int:
    """Bytes of the training latents in Parquet."""
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.parquet"
        for rows in Sequences(latents, "train").batches(4096):
            blobs = (
                np.ascontiguousarray(x).reshape(len(rows), -1).view(np.uint8) for x in columns(rows)
            )
            pq.write_table(
                pa.table([blob_column(blob) for blob in blobs], ["mean", "logvar"]),
                path,
                row_group_size=ENCODE.rows_per_group,
                compression="zstd",
                compression_level=ENCODE.compression_level,
                use_dictionary=False,
            )
            total += path.stat().st_size
    return total


def loss(
    latents: Latents, posterior: Callable[[Rows], Pair], steps: int, batch: int, seed: int
) -> float:
    """The validation flow loss of a prior trained on latents of this posterior."""
    original = Sequences._read_part

    def read(self: Sequences, *place: int) -> Rows:
        rows = original(self, *place)
        if self.split != "train":
            return rows
        mean, logvar = posterior(rows)
        return replace(rows, mean=mean, logvar=logvar)

    flags: dict[str, Any] = {
        "model.prediction": "velocity",
        "model.stagger": 0,
        "model.layers": 2,
        "model.dim": 96,
        "model.heads": 2,
        "train.steps": steps,
        "train.batch_size": batch,
        "train.validate_every": steps,
        "train.checkpoint_every": steps,
        "train.data_seed": seed,
        "train.seed": seed,
    }
    settings = resolve(PriorSettings, "prior", "tiny", flags=flags)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Sequences, "_read_part", read):
        made = train(PRIOR, latents.path, Path(folder) / "prior", settings, Run(device="cpu"))
    return float(made.statistics["validation_flow"])


def main() -> None:
    """Measure all forms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("latents", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    latents = Latents.open(asked.latents)
    computed = float32(latents)
    # name -> the posterior that is trained on, and what lies on the disk
    forms: dict[str, Pair] = {name: (stored(name), encoded(name)) for name in FORMS} | {
        "nudged": (nudged, pair),
        "bfloat16": (bfloat16, lambda rows: [x.view(np.uint16)[..., 1::2] for x in bfloat16(rows)]),
        "float32": (computed, computed),
    }
    text = sum(part.statistics["bytes"] for part in latents.split_parts("train"))
    found: dict[str, Any] = {}
    for name, (posterior, columns) in forms.items():
        losses = [
            loss(latents, posterior, asked.steps, asked.batch, seed) for seed in range(asked.seeds)
        ]
        found[name] = {"bytes": size(latents, columns), "text_bytes": text, "losses": losses}
        print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps(found))
        return
    print(
        "| form | bytes a byte of text | of float16 | flow loss | change |\n|---|---|---|---|---|"
    )
    base = found["float16"]
    for name, one in found.items():
        changes = [a - b for a, b in zip(one["losses"], base["losses"], strict=True)]
        spread = statistics.stdev(changes) if len(changes) > 1 else 0.0
        print(
            f"| {name} | {one['bytes'] / text:.2f} | {one['bytes'] / base['bytes']:.2f}"
            f" | {statistics.mean(one['losses']):.4f} | {statistics.mean(changes):+.4f} ± {spread:.4f} |"
        )


if __name__ == "__main__":
    main()
