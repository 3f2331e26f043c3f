"""Where a folder came from, if it lies in a cache, of a Hugging Face hub or ours. Needs no library of it."""

from __future__ import annotations

import re
from pathlib import Path

from cola_cli.artifacts.stores import address_of

_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")


def published(path: Path) -> str | None:
    """The address of a folder or file: `hf:org/name@commit` of what was fetched from a hub, that in an object
    store of a copy of it; None of any other."""
    found = _SNAPSHOT.search(path.absolute().as_posix())
    return f"hf:{found[1].replace('--', '/')}@{found[2]}" if found else address_of(path)


def stays_home(path: Path, directory: Path) -> bool:
    """Whether a file of the artifact at `directory`, links followed, lies in it.

    The files of a hub's snapshot are links into the same repository's folder of the cache, which is home too.
    """
    home = directory.resolve()
    if _SNAPSHOT.search(home.as_posix()) and home.parent.name == "snapshots":
        home = home.parents[1]
    return path.resolve().is_relative_to(home)
