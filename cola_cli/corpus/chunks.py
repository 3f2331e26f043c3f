"""A corpus: its files, whose content is its identity, and its documents in chunks.

Duplicates are dropped across all files. Chunks depend on the text alone, so neither kills nor the number of
processes or shards change a byte of what is made of them.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cola_cli.artifacts.files import sha256_text
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.artifacts.reading import reason
from cola_cli.corpus.documents import read_documents, require_unchanged
from cola_cli.corpus.files import CorpusFile, LeftOut, find_files
from cola_cli.corpus.packing import document_digest, is_validation
from cola_cli.corpus.tokenizer import PIECE
from cola_cli.errors import ColaError, InputError
from cola_cli.settings.tokenize import TokenizeSettings


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


@dataclass
class Counts:
    """What was counted while a corpus was read."""

    documents: int = 0
    duplicates: int = 0
    rejects: int = 0  # empty texts, null fields, empty files
    bytes: int = 0
    characters: int = 0
    read: int = 0  # bytes of the files as they lie there, packed or not
    before: int = 0  # documents before those of the file that is being read

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.duplicates:,} duplicates,"
            f" {self.rejects:,} empty or null"
        )

    def advance(self, count: int) -> None:
        """`count` more bytes of the files were read."""
        self.read += count


class Text(NamedTuple):
    """A document that is neither empty nor a duplicate, numbered in the order of the corpus."""

    number: int
    text: str
    validation: bool
    place: str


@dataclass
class Chunk:
    """Consecutive documents that become the parts 2 * index and 2 * index + 1."""

    index: int
    documents: list[Text] = field(default_factory=list)
    bytes: int = 0
    read: int = 0  # bytes of the files that were read for it
    first: str = ""  # place of the first document


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


def read_corpus(
    corpus: Corpus,
    settings: TokenizeSettings,
    counts: Counts,
    files: list[CorpusFile] | None = None,
) -> Iterator[Text]:
    """The documents of a corpus (or of some of its files) that are neither empty nor duplicates.

    Raises InputError as `read_documents` does, and ChangedFile at the end of a file that is not, byte for
    byte, the one whose digest the corpus knows.
    """
    seen: set[bytes] = set()
    for file in corpus.files if files is None else files:
        empty, counts.before = True, counts.documents
        for document in read_documents(
            file,
            settings.text_field,
            settings.documents,
            counts.advance,
            corpus.digests[file.name],
        ):
            empty = False
            text = document.text
            if settings.normalize == "nfc":
                text = unicodedata.normalize("NFC", text)
            if not text.strip():
                counts.rejects += 1
                continue
            digest = document_digest(text)
            if digest in seen:
                counts.duplicates += 1
                continue
            seen.add(digest)
            counts.bytes += len(text.encode())
            counts.characters += len(text)
            validation = is_validation(digest, settings.validation_fraction, settings.seed)
            yield Text(counts.documents, text, validation, f"{file}, {document.place}")
            counts.documents += 1
        counts.rejects += empty


def training_sample(corpus: Corpus, settings: TokenizeSettings) -> Iterator[Text]:
    """Training documents, at most `sample_bytes` of text, an equal share from every file."""
    share = max(1, settings.sample_bytes // len(corpus.files))
    for file in corpus.files:
        taken = 0
        for document in read_corpus(corpus, settings, Counts(), [file]):
            if not document.validation:
                yield document
                taken += len(document.text)
            if taken >= share:
                break
        require_unchanged(file, corpus.digests[file.name])


def chunks(corpus: Corpus, settings: TokenizeSettings, counts: Counts) -> Iterator[Chunk]:
    """The documents of a corpus in chunks of at least `part_bytes` of text."""
    chunk, before = Chunk(0), 0
    for document in read_corpus(corpus, settings, counts):
        if not chunk.documents:
            chunk.first = document.place
        # only a long one may fail later and has to be named then
        short = len(document.text) <= PIECE
        chunk.documents.append(document._replace(place="") if short else document)
        chunk.bytes += len(document.text.encode())
        if chunk.bytes >= settings.part_bytes:
            chunk.read, before = counts.read - before, counts.read
            yield chunk
            chunk = Chunk(chunk.index + 1)
    if chunk.documents:
        chunk.read = counts.read - before
        yield chunk
