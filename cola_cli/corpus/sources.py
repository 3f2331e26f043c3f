"""A corpus: its files, whose content is its identity."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cola_cli.artifacts.files import sha256_text
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.artifacts.reading import reason
from cola_cli.corpus.files import CorpusFile, LeftOut, find_files
from cola_cli.errors import ColaError, InputError


@dataclass
class Corpus:
    """The files of a corpus and what makes up its identity."""

    files: list[CorpusFile]
    digests: dict[str, dict[str, Any]]  # bytes, modification time and SHA-256 by file name
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def identity(self) -> str:
        """A digest of the content of all files in their order."""
        return sha256_text("".join(self.digests[file.name]["sha256"] for file in self.files))

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
        try:
            size, modified = file.state()
            known = remembered.get(file.name)
            if isinstance(known, dict) and modified and _is_same(known, size, modified):
                corpus.digests[file.name] = known
            else:
                seen = {"bytes": size, "modified": modified}
                corpus.digests[file.name] = seen | {"sha256": file.sha256()}
        except Exception as error:
            if isinstance(error, ColaError) or not (file.filesystem or isinstance(error, OSError)):
                raise
            raise InputError(f"{file} cannot be read ({reason(error)}).", "Check it.") from error
    return corpus


def _is_same(known: dict[str, Any], size: int, modified: int) -> bool:
    """Whether a file is, by size and time, the one whose digest is known."""
    unchanged = known.get("bytes") == size and known.get("modified") == modified
    return unchanged and isinstance(known.get("sha256"), str)
