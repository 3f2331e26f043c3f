"""The table of metrics: one Parquet file, replaced atomically as training goes, readable at any moment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cola_cli.artifacts.files import atomic_file
from cola_cli.errors import DamagedArtifact

# Columns that differ between two runs of the same training.
TIMES = ("seconds", "tokens_per_second", "flops_use", "reader_share", "memory_bytes")


class Metrics:
    """Rows of (step, name, ...) floats; a name that a row lacks is null there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def resume(self, step: int) -> None:
        """Read what an interrupted run wrote and forget the rows after its checkpoint at `step`."""
        self.rows = []
        if not step or not self.path.exists():
            return
        try:
            table = pq.read_table(self.path)
        except (pa.ArrowException, OSError) as error:
            raise DamagedArtifact(
                f"{self.path} cannot be read ({error}).", "Run the stage again with --overwrite."
            ) from error
        for row in table.to_pylist():
            if row["step"] <= step:
                self.rows.append({name: value for name, value in row.items() if value is not None})

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add figures of `step`; figures of the same step share a row."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1].update(values)

    def flush(self) -> None:
        """Write all rows."""
        names = sorted({name for row in self.rows for name in row} - {"step"})
        columns: dict[str, Any] = {"step": pa.array([row["step"] for row in self.rows], pa.int64())}
        for name in names:
            columns[name] = pa.array([row.get(name) for row in self.rows], pa.float64())
        with atomic_file(self.path) as temporary:
            pq.write_table(pa.table(columns), temporary, compression="zstd")

    def last(self, name: str) -> float:
        """The newest value of a column; NaN if there is none."""
        return next((row[name] for row in reversed(self.rows) if name in row), math.nan)
