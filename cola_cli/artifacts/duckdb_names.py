"""Names of files for DuckDB, which reads them as patterns, as UTF-8, and with a backslash as a slash."""

from __future__ import annotations

import functools
import itertools
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

FORMATS = (".parquet", ".jsonl.zst", ".json")  # by which DuckDB knows what a file is


def duckdb_name(path: Path) -> str:
    """The name under which DuckDB opens this file and no other."""
    name = str(path.resolve())
    if not name.isprintable() or "\\" in name:  # surrogates are not printable
        link = _next_link(next((ending for ending in FORMATS if name.endswith(ending)), ""))
        link.symlink_to(path.resolve())
        name = str(link)
    return re.sub(r"([*?\[])", r"[\1]", name)


def duckdb_list(paths: Iterable[Path]) -> str:
    """Files as a list in SQL."""
    names = (duckdb_name(path).replace("'", "''") for path in paths)
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


def _next_link(ending: str) -> Path:
    folder, numbers = _links()
    return Path(folder.name, f"{next(numbers):06d}{ending}")


@functools.cache
def _links() -> tuple[tempfile.TemporaryDirectory[str], itertools.count[int]]:
    """A directory of links to files with awkward names; it goes with the process."""
    return tempfile.TemporaryDirectory(prefix="cola-"), itertools.count()
