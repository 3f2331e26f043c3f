"""More text for a corpus that is tokenized: new files come after the others, which must be as they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cola_cli.artifacts.manifest import Identity, Manifest
from cola_cli.corpus.files import URL, CorpusFile, find_files
from cola_cli.corpus.sources import ADDED, Corpus, describe
from cola_cli.errors import InputError, OutputConflict

AGAIN = (
    "Restore it, go to the folder in which the names of the earlier files begin, or tokenize what there is"
    " into another output."
)


def grown(names: list[str], output: Path, manifest: Manifest) -> Corpus:
    """The corpus that the tokens artifact at `output` was made from, then the files of `names` that are new.

    Raises InputError for an earlier file that is gone, OutputConflict for one that has changed.
    """
    recorded = manifest.environment.get("corpus")
    if not isinstance(recorded, dict):
        raise InputError(
            f"{output} does not say which files it was made from.", "Tokenize them again."
        )
    corpus = Corpus([], {})
    added: dict[int, int] = {}
    places = set()
    for name, known in recorded.items():
        file = _earlier(name, output)
        found = describe(file, known)
        if found["sha256"] != known["sha256"]:
            raise OutputConflict(f"{file} has changed since {output} was made of it.", AGAIN)
        if addition := known.get(ADDED):
            added.setdefault(addition, len(corpus.files))
            found |= {ADDED: addition}
        corpus.files.append(file)
        corpus.digests[name] = found
        places.add(_place(file))
    last = len(added) + 1
    for file in find_files(names, output, corpus.left_out):
        if _place(file) not in places:
            added.setdefault(last, len(corpus.files))
            corpus.files.append(file)
            corpus.digests[file.name] = describe(file) | {ADDED: last}
    corpus.additions = list(added.values())
    return corpus


def ancestors(identity: Identity) -> list[str]:
    """The fingerprints of the tokens artifacts to which text was added until they were of this identity."""
    found = []
    inputs = dict(identity.inputs)
    for n in range(sum(name.startswith(f"{ADDED} ") for name in inputs), 0, -1):
        inputs.pop(f"{ADDED} {n}", None)
        found.append(identity.model_copy(update={"inputs": dict(inputs)}).fingerprint)
    return found


def _earlier(name: str, output: Path) -> CorpusFile:
    """A file of which tokens were made."""
    if not URL.match(name) and not Path(name).is_file():
        raise InputError(f"there is no {name}, of which {output} was made.", AGAIN)
    return find_files([name], output)[0]


def _place(file: CorpusFile) -> Any:
    """What two names of the same file have in common."""
    return file.name if file.filesystem else os.path.realpath(file.name)
