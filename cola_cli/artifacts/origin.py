"""Where a folder came from, if it lies in the cache of a Hugging Face hub. Needs no library of it."""

from __future__ import annotations

import re
from pathlib import Path

_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")


def published(path: Path) -> str | None:
    """The address `hf:org/name@commit` of a folder or file that was fetched from a hub; None of any other."""
    found = _SNAPSHOT.search(path.absolute().as_posix())
    return f"hf:{found[1].replace('--', '/')}@{found[2]}" if found else None


def stays_home(path: Path, directory: Path) -> bool:
    """Whether a file of the artifact at `directory`, links followed, lies in it.

    The files of a hub's snapshot are links into the same repository's folder of the cache, which is home too.
    """
    home = directory.resolve()
    if _SNAPSHOT.search(home.as_posix()) and home.parent.name == "snapshots":
        home = home.parents[1]
    return path.resolve().is_relative_to(home)
