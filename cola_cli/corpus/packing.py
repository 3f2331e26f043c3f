"""Documents to rows of `seq_len` tokens, losing and repeating none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

DIGEST_BYTES = 16


@dataclass
class Row:
    """A packed sequence: its tokens, and the pieces of documents it is made of.

    segments: (document, offset, length) in tokens of the document, its end-of-text token included.
    """

    tokens: list[int] = field(default_factory=list)
    segments: list[tuple[int, int, int]] = field(default_factory=list)


def pack(
    documents: Iterable[tuple[int, list[int]]], seq_len: int, end_of_text: int
) -> Iterator[Row]:
    """Rows of `seq_len` tokens from (document number, token ids), each document closed by end-of-text.

    Only the last row may be shorter.
    """
    row = Row()
    for number, ids in documents:
        offset = 0
        ids = [*ids, end_of_text]
        while offset < len(ids):
            length = min(seq_len - len(row.tokens), len(ids) - offset)
            row.tokens.extend(ids[offset : offset + length])
            row.segments.append((number, offset, length))
            offset += length
            if len(row.tokens) == seq_len:
                yield row
                row = Row()
    if row.tokens:
        yield row


def document_digest(text: str) -> bytes:
    """The 16 bytes by which documents are told apart and split."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def is_validation(digest: bytes, fraction: float, seed: int) -> bool:
    """Whether a document belongs to the validation split: a function of its content and the seed alone."""
    keyed = hashlib.blake2b(digest, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(keyed, "little") < fraction * 2**64
