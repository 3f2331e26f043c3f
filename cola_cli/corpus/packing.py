"""Documents to rows of `seq_len` tokens, losing and repeating none, and the rows of a part on disk."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cola_cli.artifacts.columns import column

DIGEST_BYTES = 16
ROW_GROUP = 1024  # rows; a training reader takes one group at a time


@dataclass
class PackedRow:
    """A packed sequence: its tokens, and the pieces of documents in it.

    segments: (document, offset, length) in tokens of the document, its end-of-text token included.
    response: of a conversation, which of the tokens are answers. starts: where the segments begin in the
    sequence, with padding between them; empty: one follows the other.
    """

    tokens: list[int] = field(default_factory=list)
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    response: list[bool] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    @property
    def stop(self) -> int:
        """The place behind its last token."""
        return self.starts[-1] + self.segments[-1][2] if self.starts else len(self.tokens)

    def places(self) -> list[int]:
        """Where its tokens are in the sequence."""
        lengths = [length for _, _, length in self.segments]
        found = zip(self.starts, lengths, strict=True)
        return [place for start, length in found for place in range(start, start + length)]


def pack(
    documents: Iterable[tuple[int, Sequence[int]]], seq_len: int, end_of_text: int
) -> Iterator[PackedRow]:
    """Rows of `seq_len` tokens from (document number, token ids), each document closed by end-of-text.

    Only the last row may be shorter.
    """
    row = PackedRow()
    for number, ids in documents:
        offset, whole = 0, len(ids) + 1
        while offset < whole:
            length = min(seq_len - len(row.tokens), whole - offset)
            row.tokens.extend(ids[offset : offset + length])
            if offset + length == whole:
                row.tokens.append(end_of_text)
            row.segments.append((number, offset, length))
            offset += length
            if len(row.tokens) == seq_len:
                yield row
                row = PackedRow()
    if row.tokens:
        yield row


def separated(rows: Iterable[PackedRow], seq_len: int, step: int) -> Iterator[PackedRow]:
    """Rows with as many of these, of one segment each, as fit; each begins at a multiple of `step`."""
    whole = PackedRow()
    for row in rows:
        start = -(-whole.stop // step) * step
        if start + len(row.tokens) > seq_len:
            yield whole
            whole, start = PackedRow(), 0
        whole.tokens += row.tokens
        whole.segments += row.segments
        whole.response += row.response
        whole.starts.append(start)
    if whole.tokens:
        yield whole


def write_rows(
    path: Path, rows: Iterator[PackedRow], seq_len: int, pad_id: int, chat: bool, apart: bool
) -> tuple[int, int]:
    """Write rows as Parquet, a row group at a time; returns the numbers of rows and of tokens.

    Columns: tokens (`seq_len` int32, padded with `pad_id`), length (places before the padding at the end),
    segments (document, offset, length, with `apart` start) and with `chat` response, as in `PackedRow`.
    """
    import pyarrow.parquet as pq

    count = tokens = 0
    groups = iter(lambda: list(itertools.islice(rows, ROW_GROUP)), [])
    first = next(groups, [])
    schema = _table(first, seq_len, pad_id, chat, apart).schema
    # an open file: pyarrow takes names for URIs and expands ~
    with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as out:
        for group in itertools.chain([first], groups):
            out.write_table(_table(group, seq_len, pad_id, chat, apart), ROW_GROUP)
            count += len(group)
            tokens += sum(len(row.tokens) for row in group)
    return count, tokens


def _table(rows: list[PackedRow], seq_len: int, pad_id: int, chat: bool, apart: bool) -> Any:
    import numpy as np
    import pyarrow as pa

    tokens = np.full((len(rows), seq_len), pad_id, dtype=np.int32)
    response = np.zeros((len(rows), seq_len), dtype=bool)
    for row, target, own in zip(rows, tokens, response, strict=True):
        places = row.places() if apart else slice(len(row.tokens))
        target[places] = row.tokens
        if row.response:
            own[places] = row.response
    pieces = np.array([piece for row in rows for piece in row.segments], np.int64).reshape(-1, 3)
    fields = {"document": pieces[:, 0]}
    fields |= {"offset": pieces[:, 1].astype(np.int32), "length": pieces[:, 2].astype(np.int32)}
    if apart:
        fields["start"] = np.array([start for row in rows for start in row.starts], np.int32)
    ends = np.cumsum([0, *(len(row.segments) for row in rows)], dtype=np.int32)
    segments = pa.StructArray.from_arrays([*map(column, fields.values())], [*fields])
    starts = column(np.arange(len(rows) + 1, dtype=np.int32) * seq_len)
    columns = {
        "tokens": pa.ListArray.from_arrays(starts, column(tokens.ravel())),
        "length": column(np.array([row.stop for row in rows], np.int32)),
        "segments": pa.ListArray.from_arrays(column(ends), segments),
    }
    if chat:
        columns["response"] = pa.ListArray.from_arrays(starts, pa.array(response.ravel()))
    return pa.table(columns)


def document_digest(text: str) -> bytes:
    """A digest of 16 bytes that decides whether documents are duplicates, and their split."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def is_validation(digest: bytes, fraction: float, seed: int) -> bool:
    """Whether a document belongs to the validation split: a function of its content and the seed alone."""
    keyed = hashlib.blake2b(digest, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(keyed, "little") < fraction * 2**64
