"""The documents of a corpus in chunks, as its survey planned them.

Chunks depend on the text alone, so neither kills nor the number of processes or shards change a byte of what
is made of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from cola_cli.corpus.chats import Chat
from cola_cli.corpus.documents import Range, changed, require_unchanged
from cola_cli.corpus.files import CorpusFile
from cola_cli.corpus.packing import is_validation
from cola_cli.corpus.sources import Corpus
from cola_cli.corpus.survey import (
    ORDINAL_BITS,
    Found,
    Piece,
    Plan,
    Tally,
    digests_of,
    duplicates_from,
    tally_of,
    texts,
)
from cola_cli.corpus.tokenizer import PIECE
from cola_cli.errors import InputError
from cola_cli.settings.tokenize import TokenizeSettings


class Text(NamedTuple):
    """A document that is neither empty nor a duplicate, numbered in the order of the corpus."""

    number: int
    text: str
    validation: bool
    place: str
    chat: Chat


@dataclass
class Chunk:
    """Consecutive documents that become the parts 2 * index and 2 * index + 1."""

    index: int
    documents: list[Text] = field(default_factory=list)
    bytes: int = 0  # of their text
    first: str = ""  # place of the first document


def training_sample(corpus: Corpus, settings: TokenizeSettings) -> Iterator[Found]:
    """Training documents, at most `sample_bytes` of text, an equal share from every file."""
    share = max(1, settings.sample_bytes // len(corpus.files))
    for file in corpus.files:
        taken, seen = 0, set[bytes]()
        expected = corpus.digests[file.name]
        for found in texts(file, Range(), settings, Tally(), expected):
            if found.digest in seen:
                continue
            seen.add(found.digest)
            if not is_validation(found.digest, settings.validation_fraction, settings.seed):
                yield found
                taken += len(found.text)
            if taken >= share:
                break
        require_unchanged(file, expected)


def read_chunks(
    pieces: list[Piece],
    plan: Plan,
    directory: Path,
    settings: TokenizeSettings,
    wanted: Iterable[int],
) -> Iterator[Chunk]:
    """The wanted chunks, by their numbers in ascending order.

    Raises ChangedFile when a document is not the one that was surveyed.
    """
    at = -1  # the piece that is being read
    for index in wanted:
        start = plan.positions[index]
        if at < start >> ORDINAL_BITS:
            documents = _documents(pieces, start >> ORDINAL_BITS, directory, settings)
            duplicates = duplicates_from(directory, start)
            duplicate = next(duplicates, None)
        chunk = Chunk(index, bytes=plan.sizes[index])
        while len(chunk.documents) < plan.count(index):
            position, found = next(documents)
            at = position >> ORDINAL_BITS
            while duplicate is not None and duplicate < position:
                duplicate = next(duplicates, None)
            if position < start or position == duplicate:
                continue
            chunk.first = chunk.first or found.place
            chunk.documents.append(
                Text(
                    plan.numbers[index] + len(chunk.documents),
                    found.text,
                    is_validation(found.digest, settings.validation_fraction, settings.seed),
                    # only a long one or a conversation may fail later and has to be named then
                    found.place if found.chat or len(found.text) > PIECE else "",
                    found.chat,
                )
            )
        yield chunk


def _documents(
    pieces: list[Piece], first: int, directory: Path, settings: TokenizeSettings
) -> Iterator[tuple[int, Found]]:
    """Positions and documents from a piece on, each compared with its record."""
    lines: dict[CorpusFile, int] = {}  # before the range of a file that is read
    for before in reversed(pieces[:first]):
        file, part, _ = before.spans[0]
        if part.whole or file != pieces[first].spans[0].file:
            break
        lines[file] = lines.get(file, 0) + tally_of(directory, before.index).lines
    for piece in pieces[first:]:
        position = piece.index << ORDINAL_BITS
        digests = digests_of(directory, piece.index)
        for file, part, expected in piece.spans:
            tally = Tally()
            numbered = replace(part, first=1 + lines.get(file, 0))
            try:
                for found in texts(file, numbered, settings, tally, None):
                    if found.digest != next(digests, None):
                        raise changed(file)
                    yield position, found
                    position += 1
            except InputError:  # it had none when it was surveyed
                require_unchanged(file, expected)
                raise
            if not part.whole:
                lines[file] = lines.get(file, 0) + tally.lines
        if next(digests, None) is not None:
            raise changed(file)
