"""Time the layout of latent parts against the others that Parquet offers: write, read, size.

    python tests/bench/latents.py [--json] [--rows 4096] [--rounds 3] [--latents runs/demo/latents]

Rows are posterior means and log-variances of 128 positions and 16 channels in half precision: random normal
numbers, the worst case for compression, or those of a finished artifact. The layouts take turns in one run,
after a round that does not count; each is read back and compared with what was written. `write` and `read`
are multiples of the time that cola's layout takes, `size` of its bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cola_cli.artifacts.kinds import Latents
from cola_cli.artifacts.tensors import HALVES
from cola_cli.corpus.sequences import Sequences
from cola_cli.settings.encode import EncodeSettings
from cola_cli.stages.encode import blob_column

Halves = NDArray[np.float16]
SHAPE = (128, 16)
SETTINGS = EncodeSettings()
OURS = "fixed-size binary, zstd"


def blobs(values: Halves) -> pa.Array:
    return blob_column(HALVES.encode(values))


def lists(values: Halves) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values[0].size)


def nested(values: Halves) -> pa.Array:
    rows = pa.ListArray.from_arrays(
        np.arange(0, values.size + 1, values.shape[2], dtype=np.int32), pa.array(values.ravel())
    )
    return pa.ListArray.from_arrays(
        np.arange(0, len(values) * values.shape[1] + 1, values.shape[1], dtype=np.int32), rows
    )


def from_blobs(column: pa.ChunkedArray, shape: tuple[int, ...]) -> Halves:
    return np.concatenate(
        [
            np.frombuffer(chunk.buffers()[1], np.float16).reshape(-1, *shape)
            for chunk in column.chunks
        ]
    )


def from_lists(column: pa.ChunkedArray, shape: tuple[int, ...]) -> Halves:
    flat = column.combine_chunks()
    while not pa.types.is_float16(flat.type):
        flat = flat.flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(-1, *shape)


Layout = tuple[
    Callable[[Halves], pa.Array], Callable[[pa.ChunkedArray, Any], Halves], dict[str, Any]
]
ZSTD = {"compression": "zstd", "compression_level": SETTINGS.compression_level}
SPLIT = {"mean.list.element": "BYTE_STREAM_SPLIT", "logvar.list.element": "BYTE_STREAM_SPLIT"}
LAYOUTS: dict[str, Layout] = {
    OURS: (blobs, from_blobs, ZSTD | {"use_dictionary": False}),
    "fixed-size binary, zstd, pyarrow's defaults": (blobs, from_blobs, {"compression": "zstd"}),
    "fixed-size binary, not compressed": (
        blobs,
        from_blobs,
        {"compression": "none", "use_dictionary": False},
    ),
    "fixed-size list, zstd, pyarrow's defaults": (lists, from_lists, {"compression": "zstd"}),
    "fixed-size list, zstd, byte streams split": (
        lists,
        from_lists,
        ZSTD | {"use_dictionary": False, "column_encoding": SPLIT},
    ),
    "list of lists, zstd, pyarrow's defaults": (nested, from_lists, {"compression": "zstd"}),
}


def latents(path: Path | None, rows: int) -> tuple[Halves, Halves]:
    """Mean and log-variance, each (rows, N, d)."""
    if path is not None:
        found = Sequences(Latents.open(path), "train")
        read = found.read(0, min(rows, found.count))
        assert read.mean is not None
        assert read.logvar is not None
        return read.mean, read.logvar
    source = np.random.default_rng(0)
    mean, noise = (source.standard_normal((rows, *SHAPE), np.float32) for _ in range(2))
    return mean.astype(np.float16), (noise * 0.2 - 1).astype(np.float16)


def measure(path: Path, layout: Layout, mean: Halves, logvar: Halves) -> tuple[float, float, int]:
    """Seconds to write and to read, and bytes."""
    make, back, options = layout
    start = time.perf_counter()
    table = pa.table({"mean": make(mean), "logvar": make(logvar)})
    pq.write_table(table, path, row_group_size=SETTINGS.rows_per_group, **options)
    written = time.perf_counter()
    read = pq.read_table(path, use_threads=False)
    found = [back(read.column(name), mean.shape[1:]) for name in ("mean", "logvar")]
    done = time.perf_counter()
    for whole, part in zip(found, (mean, logvar), strict=True):
        np.testing.assert_array_equal(whole, part)
    return written - start, done - written, path.stat().st_size


def main() -> None:
    """Measure all layouts in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latents", type=Path)
    asked = parser.parse_args()
    pa.set_cpu_count(1)
    mean, logvar = latents(asked.latents, asked.rows)
    taken: dict[str, list[tuple[float, float, int]]] = {name: [] for name in LAYOUTS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds + 1):
            for name, layout in LAYOUTS.items():
                numbers = measure(Path(folder) / "part.parquet", layout, mean, logvar)
                if number:
                    taken[name].append(numbers)
    medians = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)]
        for name, rounds in taken.items()
    }
    ours = medians[OURS]
    raw = mean.nbytes + logvar.nbytes
    if asked.json:
        named = {
            name: dict(zip(("write_s", "read_s", "bytes"), values, strict=True))
            for name, values in medians.items()
        }
        print(json.dumps({"rows": len(mean), "raw_bytes": raw, "layouts": named}))
        return
    print(f"{len(mean):,} rows, {raw / 2**20:.0f} MiB; one thread; {OURS}:", end=" ")
    print(f"write {ours[0]:.3f} s, read {ours[1]:.3f} s, {ours[2] / 2**20:.1f} MiB\n")
    print("| layout | write | read | size |\n|---|---|---|---|")
    for name, values in medians.items():
        ratios = " | ".join(f"{value / base:.2f}" for value, base in zip(values, ours, strict=True))
        print(f"| {name} | {ratios} |")


if __name__ == "__main__":
    main()
