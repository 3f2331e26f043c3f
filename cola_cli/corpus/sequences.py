"""Packed sequences read from token or latent parts: in order, or shuffled for training.

The shuffled order is a pure function of (seed, position), so a reader resumes anywhere at once and needs no
state but the position: rows are cut into chunks, the chunks permuted again each epoch, and the rows of each
window of the permuted chunks permuted again. Only one window is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cola_cli.artifacts.checks import RESTORE
from cola_cli.artifacts.files import arrow_file
from cola_cli.artifacts.kinds import Packed
from cola_cli.artifacts.reading import parse_json, reason, shown
from cola_cli.artifacts.tensors import FORMS
from cola_cli.corpus.parquet_footer import column_chunks, require_group
from cola_cli.errors import DamagedArtifact, InputError

AHEAD = 8  # batches whose parts are fetched in advance
CHUNK = 1024  # rows that stay together until the window is permuted
DOCUMENT_ROWS = 256  # sequences read at a time for their documents
LARGEST_LOGVAR = 0x558B  # the half 88.6875, the last whose exponential float32 can hold
SHAPE = b"cola.shape"  # schema metadata of latent parts: JSON [N, d]
FORM = b"cola.form"  # and the name of the form, if it is not float16

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Some packed sequences; `mean` and `logvar` only from latents, `response` only of conversations.

    pieces: only where documents do not see one another, (B, L), which of them a token is of, from 1; negative
    for the padding behind it.
    """

    rows: Integers  # (B,) numbers of the sequences in their split
    tokens: Integers  # (B, L)
    lengths: Integers  # (B,) places before the padding at the end
    mean: NDArray[np.float16] | None = None  # (B, N, d)
    logvar: NDArray[np.float16] | None = None  # (B, N, d)
    response: NDArray[np.bool_] | None = None  # (B, L) which tokens are answers
    pieces: Integers | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_text(self) -> NDArray[np.bool_]:
        """(B, L) which tokens are of the text; the others are padding."""
        real: NDArray[np.bool_] = np.arange(self.tokens.shape[1]) < self.lengths[:, None]
        return real if self.pieces is None else real & (self.pieces > 0)

    def position_pieces(self, patch_size: int = 1) -> Integers | None:
        """Which document each position of so many tokens is of, (B, N), padding with what it follows.

        None where documents see one another.
        """
        return None if self.pieces is None else np.abs(self.pieces[:, ::patch_size])

    def take(self, places: Sequence[int] | NDArray[np.int64] | slice) -> Rows:
        """The sequences at these places."""
        taken: Any = (None if array is None else array[places] for array in self._arrays())
        return Rows(*taken)

    def _arrays(self) -> tuple[Any, ...]:
        return (
            self.rows, self.tokens, self.lengths, self.mean, self.logvar, self.response, self.pieces
        )  # fmt: skip


def concatenate(pieces: list[Rows]) -> Rows:
    """One Rows of several."""
    if len(pieces) == 1:
        return pieces[0]
    columns = zip(*(piece._arrays() for piece in pieces), strict=True)
    joined: Any = (None if column[0] is None else np.concatenate(column) for column in columns)
    return Rows(*joined)


# What columns of other types or lengths than ours make of numpy and Arrow.
_FOREIGN = (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError)


class Sequences:
    """The sequences of one split of a token or latent artifact, numbered in the order of the parts."""

    def __init__(self, artifact: Packed[Any], split: str) -> None:
        self.artifact = artifact
        self.split = split
        self._parts = artifact.split_parts(split)
        self._starts = np.cumsum([0, *(part.rows for part in self._parts)])
        self.count = int(self._starts[-1])
        if not self.count:
            raise InputError(
                f"{artifact.path} has no {split} sequences.",
                "Whole documents are held out for validation: tokenize again, into another directory, with"
                " several documents (blank lines separate them in text files) and a --validation-fraction"
                " above 0 and large enough for one of them.",
            )

    def read(self, start: int, stop: int) -> Rows:
        """The sequences numbered start to stop - 1."""
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        pieces = []
        while first < len(self._parts) and self._starts[first] < stop:
            begin = int(self._starts[first])
            pieces.append(
                self._read_part(
                    first, max(start - begin, 0), min(stop - begin, self._parts[first].rows)
                )
            )
            first += 1
        return concatenate(pieces)

    def fetch_ahead(self, numbers: Integers) -> None:
        """Begin to fetch the parts of the sequences of these numbers, where they lie in an object store."""
        places = np.unique(np.searchsorted(self._starts, numbers, "right") - 1)
        self.artifact.fetch_ahead(self._parts[place].file for place in places)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Rows]:
        """All sequences (or the first `limit`) in order, `size` at a time."""
        end = self.count if limit is None else min(limit, self.count)
        for start in range(0, end, size):
            self.fetch_ahead(np.arange(start, min(start + AHEAD * size, end)))
            yield self.read(start, min(start + size, end))

    def _read_part(self, part: int, start: int, stop: int) -> Rows:
        record = self._parts[part]
        path = self.artifact.part_file(record.index)
        try:
            with arrow_file(path) as stream, pq.ParquetFile(stream) as file:
                if file.metadata.num_rows != record.rows:
                    raise ValueError(f"it has {file.metadata.num_rows} rows, not {record.rows}")
                groups, skipped = _groups(file, start, stop)
                chunks = column_chunks(path)
                for group in groups:
                    require_group(chunks[group], file.metadata.schema)
                table = file.read_row_groups(groups).slice(start - skipped, stop - start)
            rows = rows_of(table, int(self._starts[part]) + start)
            if len(rows) != stop - start:
                raise ValueError(f"it has {len(rows)} rows where {stop - start} should be")
            is_latents = self.artifact.manifest.kind == "latents"
            if is_latents and (rows.mean is None or rows.logvar is None):
                raise ValueError("it has no latents")
        except (pa.ArrowException, OSError, *_FOREIGN) as error:
            raise DamagedArtifact(
                f"{path} is not a part of packed sequences ({reason(error)}).",
                RESTORE,
            ) from error
        require_sound(rows, path, start, self.artifact.statistics)
        return rows


class Shuffled:
    """The endless shuffled order over a split: epoch after epoch, each sequence once an epoch."""

    def __init__(self, sequences: Sequences, seed: int, window: int) -> None:
        self.sequences = sequences
        self.count = sequences.count
        self._seed = seed
        self._window = window
        self._held: tuple[int, int] | None = None
        self._rows: Rows | None = None

    def read(self, positions: Sequence[int]) -> Rows:
        """The sequences at these ascending positions of the endless order."""
        pieces = []
        place = 0
        while place < len(positions):
            epoch, offset = divmod(positions[place], self.count)
            window = offset // self._window
            end = epoch * self.count + min((window + 1) * self._window, self.count)
            start = epoch * self.count + window * self._window
            stop = place
            while stop < len(positions) and positions[stop] < end:
                stop += 1
            rows = self._load(epoch, window)
            pieces.append(rows.take(np.asarray(positions[place:stop], np.int64) - start))
            place = stop
        return concatenate(pieces)

    def order(self, epoch: int, window: int) -> Integers:
        """The numbers of the sequences in one window of an epoch."""
        chunks = -(-self.count // CHUNK)
        permuted = self._random(epoch, 0).permutation(chunks)
        ends = np.cumsum(np.minimum(CHUNK, self.count - permuted * CHUNK))
        start, stop = window * self._window, min((window + 1) * self._window, self.count)
        first = int(np.searchsorted(ends, start, "right"))
        last = int(np.searchsorted(ends, stop, "left"))
        numbers = np.concatenate(
            [
                np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count))
                for chunk in permuted[first : last + 1]
            ]
        )
        skipped = start - (int(ends[first - 1]) if first else 0)
        numbers = numbers[skipped : skipped + stop - start]
        return self._random(epoch, window + 1).permutation(numbers)

    def _following(self, epoch: int, window: int) -> tuple[int, int]:
        """The window that is read after one."""
        last = (window + 1) * self._window >= self.count
        return (epoch + 1, 0) if last else (epoch, window + 1)

    def _random(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(key=[self._seed, 2], counter=[0, 0, epoch, stream])
        )

    def _load(self, epoch: int, window: int) -> Rows:
        if self._held != (epoch, window) or self._rows is None:
            numbers = self.order(epoch, window)
            ascending = np.sort(numbers)
            breaks = np.flatnonzero(np.diff(ascending) != 1) + 1
            runs = np.split(ascending, breaks)
            self._rows = None  # let the old window go before the new one is read
            for one in (epoch, window), self._following(epoch, window):
                self.sequences.fetch_ahead(self.order(*one))
            read = concatenate([self.sequences.read(run[0], run[-1] + 1) for run in runs])
            self._rows = read.take(np.searchsorted(ascending, numbers))
            self._held = epoch, window
        return self._rows


def _groups(file: pq.ParquetFile, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold rows start to stop - 1, and the number of rows before them."""
    chosen, skipped, seen = [], 0, 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if seen + rows <= start:
            skipped += rows
        elif seen < stop:
            chosen.append(group)
        seen += rows
    return chosen, skipped


def require_sound(rows: Rows, path: Path, first: int, promised: Any) -> None:
    """Raise DamagedArtifact for token ids and lengths out of range, and latents that are not finite.

    path, first: the part that the sequences come from, and the row of the first of them in it. promised:
    the statistics of their artifact.
    """
    ids, lengths, vocabulary = rows.tokens, rows.lengths, promised.vocab_size
    if (length := ids.shape[1]) != promised.seq_len:
        raise DamagedArtifact(
            f"{path} has sequences of {length} tokens, but seq_len of its artifact is {promised.seq_len}.",
            RESTORE,
        )
    faults = [
        (((ids < 0) | (ids >= vocabulary)).any(1), f"token ids outside 0 ... {vocabulary - 1}"),
        ((lengths < 0) | (lengths > ids.shape[1]), "a length outside the sequence"),
    ]
    for name, halves in (("mean", rows.mean), ("logvar", rows.logvar)):
        if halves is not None:
            # an exponent of ones; numpy's isfinite converts every half first
            wrong = (halves.view(np.uint16) & 0x7C00) == 0x7C00
            faults.append((wrong.any((1, 2)), f"values in {name} that are not finite numbers"))
    if rows.logvar is not None:
        bits = rows.logvar.view(np.uint16)
        large = (bits > LARGEST_LOGVAR) & (bits < 0x7C00)
        faults.append((large.any((1, 2)), "values in logvar whose variance is infinite"))
    for found, what in faults:
        if found.any():
            raise DamagedArtifact(
                f"{path}: row {first + int(found.argmax())} has {what}.",
                "Run the stage that made it again with --overwrite.",
            )


def rows_of(table: pa.Table, first: int) -> Rows:
    count = len(table)
    if table.column("tokens").null_count or table.column("length").null_count:
        raise ValueError("it has rows without tokens")
    tokens = _flat(table, "tokens").reshape(count, -1).astype(np.int64)
    response = None
    if "response" in table.column_names:
        response = _flat(table, "response").reshape(tokens.shape)
        if response.dtype != bool:
            raise ValueError("column response holds something else than true and false")
    return Rows(
        np.arange(first, first + count),
        tokens,
        table.column("length").to_numpy().astype(np.int64),
        _tensors(table, "mean"),
        _tensors(table, "logvar"),
        response,
        _pieces(table, tokens.shape),
    )


def _pieces(table: pa.Table, shape: tuple[int, ...]) -> Integers | None:
    """`pieces` of `Rows` of this shape."""
    if "segments" not in table.column_names:
        return None
    segments = table.column("segments").combine_chunks()
    if segments.type.value_type.get_field_index("start") < 0:
        return None
    pieces = segments.flatten()
    row = np.repeat(np.arange(len(segments)), segments.value_lengths())
    start, length = (pieces.field(n).to_numpy().astype(np.int64) for n in ("start", "length"))
    if len(start) and (start.min() < 0 or length.min() < 0):
        raise ValueError("a segment begins or ends before it")
    begins, text = np.zeros((2, shape[0], shape[1] + 1), np.int64)
    np.add.at(begins, (row, start), 1)
    np.add.at(text, (row, start), 1)
    np.add.at(text, (row, start + length), -1)
    number, text = (steps.cumsum(1)[:, :-1] for steps in (begins, text))
    return np.where(text > 0, number, -number)


def _flat(table: pa.Table, name: str) -> NDArray[Any]:
    """The values of a column of lists, one list after another."""
    values: NDArray[Any] = (
        table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    )
    return values


def _tensors(table: pa.Table, name: str) -> NDArray[np.float16] | None:
    if name not in table.column_names:
        return None
    if table.column(name).null_count:
        raise ValueError(f"column {name} has empty rows")
    metadata = table.schema.metadata
    positions, channels = parse_json(metadata[SHAPE])
    stored = metadata.get(FORM, b"float16").decode()
    if stored not in FORMS:
        raise ValueError(f"its latents have the unknown form {shown(stored)!r}")
    form = FORMS[stored][name]
    column = table.column(name).combine_chunks()
    width = column.type.byte_width
    if width != form.width(positions, channels):
        raise ValueError(f"column {name} has {width} bytes a row, not those of its shape and form")
    data = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    found: NDArray[np.float16] = form.decode(data.reshape(-1, width), positions, channels)
    return found


def split_documents(source: Sequences, end_of_text: int) -> Iterator[list[int]]:
    """The documents of packed sequences, across their rows, without the end-of-text tokens."""
    document: list[int] = []
    for rows in source.batches(DOCUMENT_ROWS):
        for row, real in zip(rows.tokens, rows.is_text, strict=True):
            ids = row[real].tolist()
            start, length = 0, len(ids)
            while start < length:
                try:
                    end = ids.index(end_of_text, start, length)
                except ValueError:
                    document += ids[start:length]
                    break
                document += ids[start:end]
                if document:
                    yield document
                document = []
                start = end + 1
    if document:
        yield document
