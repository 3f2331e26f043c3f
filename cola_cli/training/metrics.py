"""The table of metrics: one Parquet file, replaced atomically as training goes, readable at any moment."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cola_cli.artifacts.files import arrow_file, sha256_bytes, write_atomic
from cola_cli.artifacts.reading import reason
from cola_cli.errors import DamagedArtifact

# Columns that differ between two runs of the same training.
TIMES = ("seconds", "tokens_per_second", "flops_use", "reader_share", "memory_bytes")
VALIDATION = "validation_"
Watch = Callable[[int, Mapping[str, float]], None]


def unwatched(step: int, values: Mapping[str, float]) -> None:
    """Metrics that nobody else is told of."""


class Metrics:
    """Rows of (step, name, ...) floats; a name that a row lacks is null there."""

    def __init__(self, path: Path, watch: Watch = unwatched) -> None:
        """watch: is told of all metrics as they are added."""
        self.path, self._watch = path, watch
        self.rows: list[dict[str, float]] = []

    def read(self) -> None:
        """Read what an earlier run wrote. Raises DamagedArtifact when it cannot be read."""
        try:
            with arrow_file(self.path) as stream:
                rows = pq.ParquetFile(stream).read().to_pylist()
            kept = [{n: value for n, value in row.items() if value is not None} for row in rows]
            self.rows = [{**row, "step": int(row["step"])} for row in kept]
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(reason(error)) from error

    def resume(self, step: int, digest: str) -> None:
        """Read the rows of an interrupted run and forget those after its checkpoint at `step`.

        Raises DamagedArtifact when they are not those of which `digest` was taken.
        """
        self.read()
        self.rows = [row for row in self.rows if row["step"] <= step]
        if digest not in (self.digest(step), self.digest(step, times=True)):  # as in version 0.1
            raise self._damaged("its rows are not the ones that the checkpoint saw")

    def thin(self, step: int, logged: bool, validated: bool) -> None:
        """Forget the metrics of `step`, the last one so far, unless it is logged or validated."""
        if not self.rows or self.rows[-1]["step"] != step:
            return
        found = self.rows.pop().items()
        kept = {n: v for n, v in found if (validated if n.startswith(VALIDATION) else logged)}
        kept.pop("step", None)
        if kept:
            self.add(step, kept)

    def digest(self, step: int, times: bool = False) -> str:
        """The digest of all metrics up to `step` but its validation, which may come after the checkpoint.

        Without the columns of times unless they are asked for, so that two runs have the same one.
        """
        rows = [
            {
                name: float(value)
                for name, value in row.items()
                if (row["step"] < step or not name.startswith(VALIDATION))
                and (times or name not in TIMES)
            }
            for row in self.rows
            if row["step"] <= step
        ]
        return sha256_bytes(json.dumps(rows, sort_keys=True).encode())

    def _damaged(self, why: str) -> DamagedArtifact:
        return DamagedArtifact(
            f"{self.path} is damaged ({why}).",
            "Restore it from a copy, or run the stage again with --overwrite.",
        )

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add metrics of `step`; those of the same step share a row."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1].update(values)
        self._watch(step, values)

    def flush(self) -> None:
        """Write all rows."""
        names = sorted({name for row in self.rows for name in row} - {"step"})
        columns: dict[str, Any] = {"step": pa.array([row["step"] for row in self.rows], pa.int64())}
        for name in names:
            columns[name] = pa.array([row.get(name) for row in self.rows], pa.float64())
        table = pa.BufferOutputStream()  # Arrow would write every column of a few bytes by itself
        pq.write_table(pa.table(columns), table, compression="zstd")
        write_atomic(self.path, table.getvalue())

    def last(self, name: str) -> float:
        """The newest value of a column; NaN without one."""
        return next((row[name] for row in reversed(self.rows) if name in row), math.nan)
