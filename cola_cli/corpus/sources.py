"""A corpus: its files, whose content is its identity."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cola_cli.artifacts.files import sha256_text
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.artifacts.reading import reason
from cola_cli.corpus.files import CorpusFile, LeftOut, find_files
from cola_cli.errors import ColaError, InputError

ADDED = "added"  # inputs `added 1`, `added 2` ...: what was added to a corpus


@dataclass
class Corpus:
    """The files of a corpus and what makes up its identity.

    additions: number of the first file of each later addition, see `cola_cli.corpus.additions`.
    """

    files: list[CorpusFile]
    digests: dict[str, dict[str, Any]]  # bytes, modification time and SHA-256 by file name
    left_out: LeftOut = field(default_factory=LeftOut)
    additions: list[int] = field(default_factory=list)

    @property
    def groups(self) -> list[list[CorpusFile]]:
        """The files that were there from the beginning, then those of each addition."""
        starts = [0, *self.additions, len(self.files)]
        return [self.files[a:b] for a, b in itertools.pairwise(starts)]

    @property
    def inputs(self) -> dict[str, str]:
        """A digest of the content of each group in the order of its files, by the name of the input."""
        return {
            f"{ADDED} {n}" if n else "corpus": sha256_text(
                "".join(self.digests[file.name]["sha256"] for file in group)
            )
            for n, group in enumerate(self.groups)
        }

    @property
    def bytes(self) -> int:
        """The size of all files as they lie there, packed or not."""
        return sum(int(self.digests[file.name]["bytes"]) for file in self.files)


def find_corpus(names: list[str], output: Path) -> Corpus:
    """The corpus files with their digests; a file unchanged in size and time is not hashed again."""
    remembered: dict[str, Any] = {}
    with contextlib.suppress(ColaError):  # nothing there yet, or something Output.open will name
        remembered = read_manifest(output).environment.get("corpus", {})
    corpus = Corpus([], {})
    corpus.files = find_files(names, output, corpus.left_out)
    for file in corpus.files:
        corpus.digests[file.name] = describe(file, remembered.get(file.name))
    return corpus


def describe(file: CorpusFile, known: Any = None) -> dict[str, Any]:
    """Bytes, modification time and SHA-256 of a file; not hashed if its size and time are `known`."""
    try:
        size, modified = file.state()
        same = isinstance(known, dict) and (
            known.get("bytes") == size
            if file.is_pinned
            else modified and _is_same(known, size, modified)
        )
        digest = known["sha256"] if same else file.sha256()
    except Exception as error:
        if isinstance(error, ColaError) or not (file.filesystem or isinstance(error, OSError)):
            raise
        raise InputError(f"{file} cannot be read ({reason(error)}).", "Check it.") from error
    return {"bytes": size, "modified": modified, "sha256": digest}


def _is_same(known: dict[str, Any], size: int, modified: int) -> bool:
    """Whether a file is, by size and time, the one whose digest is known."""
    unchanged = known.get("bytes") == size and known.get("modified") == modified
    return unchanged and isinstance(known.get("sha256"), str)
