"""What documents a corpus holds, found by any number of processes that read it once between them.

A corpus is cut into pieces: small files together, large ones by bytes or row groups. The first pass writes
the digest and the size of every document of a piece to `.scratch/FINGERPRINT/00000.parquet`, with a signature
if near-duplicates are looked for. In these records DuckDB finds duplicates, in bounded memory, and the plan
says where each chunk begins and which documents to pass over, so that a second pass can make any chunk alone.
How a corpus is cut changes no chunk.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import unicodedata
from array import array
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cola_cli.artifacts import mirror
from cola_cli.artifacts.columns import column, numbers
from cola_cli.artifacts.duckdb_names import duckdb_list
from cola_cli.artifacts.files import arrow_file, atomic_file
from cola_cli.artifacts.mirror import HERE, SCRATCH
from cola_cli.artifacts.reading import reason
from cola_cli.corpus.chats import REMEDY, Chat, MalformedChat, Message, read_chat
from cola_cli.corpus.documents import Range, read_documents
from cola_cli.corpus.files import PACKED, CorpusFile, file_format
from cola_cli.corpus.packing import DIGEST_BYTES, document_digest
from cola_cli.corpus.sources import Corpus
from cola_cli.errors import DamagedArtifact, InputError
from cola_cli.settings.tokenize import TokenizeSettings

PIECES = 1 << 14  # at most, but for small files
ROWS = 1 << 16  # of a row group
ORDINAL_BITS = 40  # of a document's position, which is its piece and its number there
# Of DuckDB, whose one thread writes to disk what takes more. The least was enough for exact duplicates among
# 40 million digests; where it is not, the next is tried.
MEMORY = ("128MB", "1GB", "8GB")
CHUNKS, DUPLICATES = "chunks.parquet", "duplicates.parquet"


class Span(NamedTuple):
    """A file, or a range of it; `expected` (bytes, modified, sha256) is what is known of the file."""

    file: CorpusFile
    part: Range
    expected: dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """What one process surveys at a time: whole files, or a range of one. An addition begins a chunk."""

    index: int
    spans: list[Span]
    bytes: int
    addition: bool = False


class Found(NamedTuple):
    """A document with text in it."""

    text: str
    digest: bytes
    place: str
    chat: Chat = ()  # of which the text are the messages


Row = tuple[bytes, int, int, Any]  # digest, bytes, characters, signature of a document


@dataclass
class Tally:
    """What was counted in a piece; `seen` are all documents, empty ones and null fields too."""

    seen: int = 0
    rejects: int = 0
    lines: int = 0


@dataclass
class Plan:
    """Totals of a corpus without duplicates, and its chunks, each of which ends where the next begins.

    positions: of the first document of a chunk. numbers: of that document among those that are not
    duplicates. sizes: bytes of the text of a chunk.
    """

    documents: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    rejects: int = 0  # empty texts, null fields, empty files
    bytes: int = 0
    characters: int = 0
    positions: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.duplicates:,} duplicates,"
            f" {self.rejects:,} empty or null"
        )

    def count(self, chunk: int) -> int:
        """Documents of a chunk."""
        last = chunk + 1 == len(self.numbers)
        return (self.documents if last else self.numbers[chunk + 1]) - self.numbers[chunk]


def pieces_of(corpus: Corpus, settings: TokenizeSettings) -> list[Piece]:
    """The pieces of a corpus in its order, of about `part_bytes` each or, if they were too many, more."""
    size = max(settings.part_bytes, corpus.bytes // PIECES)
    pieces: list[Piece] = []
    together = Piece(0, [], 0)
    begin = {group[0] for group in corpus.groups[1:]}
    for file in corpus.files:
        if file in begin:
            pieces += [together] if together.spans else []
            together = Piece(len(pieces), [], 0, addition=True)
        expected = corpus.digests[file.name]
        ranges = _ranges(file, int(expected["bytes"]), settings, size)
        for part, read in ranges:
            if together.spans and (len(ranges) > 1 or together.bytes >= size):
                pieces.append(together)
                together = Piece(len(pieces), [], 0)
            spans = [*together.spans, Span(file, part, expected)]
            together = replace(together, spans=spans, bytes=together.bytes + read)
        if len(ranges) > 1:
            pieces.append(together)
            together = Piece(len(pieces), [], 0)
    return [*pieces, together] if together.spans else pieces


def _ranges(
    file: CorpusFile, length: int, settings: TokenizeSettings, size: int
) -> list[tuple[Range, int]]:
    """The ranges that a file is cut into, and their bytes; what cannot be cut is one."""
    kind = file_format(file)
    by_lines = kind == ".jsonl" or (kind != ".csv" and settings.documents == "blank-line")
    whole = [(Range(), length)]
    if length < 2 * size or file.filesystem is not None or file.name.lower().endswith(PACKED):
        return whole
    if kind == ".parquet":
        return _row_groups(file, size) or whole
    if not by_lines:
        return whole
    starts = range(0, length - size, size)
    stops = [*starts[1:], None]
    return [(Range(a, b), (b or length) - a) for a, b in zip(starts, stops, strict=True)]


def _row_groups(file: CorpusFile, size: int) -> list[tuple[Range, int]]:
    """Ranges of row groups; none for a file that cannot be read, which the survey will name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ranges: list[tuple[Range, int]] = []
    try:
        with file.open_parquet() as raw, pq.ParquetFile(raw) as table:
            begun, held, groups = 0, 0, table.num_row_groups
            for group in range(groups):
                held += table.metadata.row_group(group).total_byte_size
                if held >= size or group + 1 == groups:
                    stop = None if group + 1 == groups else group + 1
                    ranges.append((Range(begun, stop), held))
                    begun, held = group + 1, 0
    except (pa.ArrowException, OSError, ValueError):
        return []
    return ranges


def texts(
    file: CorpusFile,
    part: Range,
    settings: TokenizeSettings,
    tally: Tally,
    expected: dict[str, Any] | None,
) -> Iterator[Found]:
    """The documents of a file, or a range of it, with text in them.

    Raises InputError as `read_documents` does, and for a malformed conversation.
    """

    def normal(text: str) -> str:
        return unicodedata.normalize("NFC", text) if settings.normalize == "nfc" else text

    text_field = None if settings.chat else settings.text_field
    documents = read_documents(file, text_field, settings.documents, expected=expected, part=part)
    for document in documents:
        tally.seen += 1
        place = f"{file}, {document.place}"
        chat: Chat = ()
        text = content = normal(document.text)
        if settings.chat and text:
            try:
                chat = tuple(Message(role, normal(said)) for role, said in read_chat(document.text))
            except MalformedChat as error:
                if settings.malformed == "error":
                    raise InputError(f"{place}: {error}.", REMEDY) from error
                tally.rejects += 1
                continue
            text, content = "\n".join(said for _, said in chat), json.dumps(chat)
        if text.strip():
            yield Found(text, document_digest(content), place, chat)
        else:
            tally.rejects += 1
    tally.lines += part.lines


def scratch_of(output: Path, fingerprint: str) -> Path:
    """Where the survey of the corpus of an unfinished artifact lies."""
    return output / SCRATCH / fingerprint[:16]


def record_of(directory: Path, index: int) -> Path:
    """The record of a piece."""
    return directory / f"{index:05d}.parquet"


def survey(piece: Piece, settings: TokenizeSettings, directory: Path) -> None:
    """Write the record of a piece: a row a document with text in it, in order."""
    from cola_cli.corpus.near_duplicates import signature

    tally, near = Tally(), settings.near_duplicates is not None

    def rows() -> Iterator[Row]:
        for file, part, expected in piece.spans:
            before = tally.seen
            try:
                for found in texts(file, replace(part), settings, tally, expected):
                    made = signature(found.text) if near else None
                    yield found.digest, len(found.text.encode()), len(found.text), made
            except InputError:
                if not part.whole:  # its lines have no numbers yet: the whole file tells them
                    for _ in texts(file, Range(), settings, Tally(), None):
                        pass
                raise
            if part.whole and tally.seen == before:  # a file of no documents is one reject
                tally.rejects += 1

    _write(directory, piece.index, rows(), tally, near)


def _write(directory: Path, index: int, rows: Iterator[Row], tally: Tally, near: bool) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cola_cli.corpus.near_duplicates import SLOTS

    position = index << ORDINAL_BITS
    kinds = {
        "position": pa.int64(),
        "high": pa.uint64(),
        "low": pa.uint64(),
        "bytes": pa.uint32(),
        "characters": pa.uint32(),
    }
    if near:
        kinds["signature"] = pa.list_(pa.uint32(), SLOTS)
    with (
        atomic_file(record_of(directory, index)) as temporary,
        arrow_file(temporary, "wb") as stream,
        pq.ParquetWriter(stream, pa.schema(kinds), use_dictionary=False) as out,
    ):
        for batch in iter(lambda: list(itertools.islice(rows, ROWS)), []):
            digests, *counts, signatures = zip(*batch, strict=True)
            sizes, characters = (np.array(count, np.uint32) for count in counts)
            halves = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
            positions = np.arange(position, position + len(batch))
            found = positions, halves[:, 0], halves[:, 1], sizes, characters
            made = [column(values) for values in found]
            if near:
                flat = column(np.concatenate(signatures))
                made.append(pa.FixedSizeListArray.from_arrays(flat, SLOTS))
            out.write_table(pa.table(dict(zip(kinds, made, strict=True))), ROWS)
            position += len(batch)
        out.add_key_value_metadata({"tally": json.dumps(asdict(tally))})


def records(directory: Path, index: int, columns: list[str]) -> Iterator[list[Any]]:
    """Columns of the record of a piece as NumPy arrays, a row group at a time."""
    import pyarrow.parquet as pq

    with _opened(record_of(directory, index)) as stream, pq.ParquetFile(stream) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns)
            yield [numbers(table[name]) for name in columns]


def digests_of(directory: Path, index: int) -> Iterator[bytes]:
    """The digests of the documents of a piece."""
    import numpy as np

    for halves in records(directory, index, ["high", "low"]):
        data = np.stack(halves, 1).tobytes()
        yield from (data[n : n + DIGEST_BYTES] for n in range(0, len(data), DIGEST_BYTES))


def tally_of(directory: Path, index: int) -> Tally:
    """What the record of a piece counted."""
    with _opened(record_of(directory, index)) as stream:
        return Tally(**json.loads(_metadata(stream)[b"tally"]))


def _opened(path: Path) -> AbstractContextManager[Any]:
    """A file of the survey to read, which another machine may have made."""
    return arrow_file(mirror.fetch(path))


def _metadata(stream: Any) -> dict[bytes, bytes]:
    import pyarrow.parquet as pq

    found: dict[bytes, bytes] = pq.read_metadata(stream).metadata
    return found


def make_plan(directory: Path, pieces: list[Piece], settings: TokenizeSettings) -> None:
    """Write the plan of a corpus whose pieces have all been surveyed."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    surveyed = [record_of(directory, piece.index) for piece in pieces]
    mirror.fetch_all(surveyed)
    with atomic_file(directory / DUPLICATES) as temporary:
        _find_duplicates(directory, surveyed, temporary, settings.near_duplicates)
    plan = _chunks(directory, pieces, settings)
    totals = {name: value for name, value in vars(plan).items() if isinstance(value, int)}
    columns = {
        name: column(np.array(value)) for name, value in vars(plan).items() if name not in totals
    }
    table = pa.table(columns).replace_schema_metadata({"totals": json.dumps(totals)})
    with atomic_file(directory / CHUNKS) as temporary, arrow_file(temporary, "wb") as stream:
        pq.write_table(table, stream)


@contextlib.contextmanager
def damage_told(directory: Path, *kinds: type[Exception]) -> Iterator[None]:
    """What Arrow raises of files that are not whole, and errors of these kinds, become DamagedArtifact."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, *kinds) as error:
        raise DamagedArtifact(
            f"the survey in {directory} cannot be read ({reason(error)}).",
            f"If the disk is not full, remove {directory} and run the same command again.",
        ) from error


def read_plan(directory: Path) -> Plan:
    """The plan that `make_plan` wrote."""
    import pyarrow.parquet as pq

    with _opened(directory / CHUNKS) as stream, pq.ParquetFile(stream) as file:
        table = file.read()
    totals = json.loads(table.schema.metadata[b"totals"])
    plan = Plan(**totals)
    for name in table.column_names:
        getattr(plan, name).frombytes(numbers(table[name]).tobytes())
    return plan


def _find_duplicates(
    directory: Path, surveyed: list[Path], path: Path, threshold: float | None
) -> None:
    """Write the positions of all documents but the first of each digest, in their order.

    threshold: also of those that resemble an earlier one so much; these are marked as near.
    """
    import duckdb

    with damage_told(directory, duckdb.Error):
        for memory in MEMORY:
            try:
                _find_duplicates_within(memory, directory, surveyed, path, threshold)
                return
            except duckdb.OutOfMemoryException:
                if memory == MEMORY[-1]:
                    raise


def _find_duplicates_within(
    memory: str, directory: Path, surveyed: list[Path], path: Path, threshold: float | None
) -> None:
    import duckdb
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cola_cli.corpus.near_duplicates import resembling

    near = "SELECT 0 LIMIT 0" if threshold is None else resembling("documents", threshold)
    with duckdb.connect(":memory:") as connection:
        for setting, value in {
            "memory_limit": f"'{memory}'",
            "threads": 1,
            "temp_directory": duckdb_list([directory / HERE / "spilled"])[1:-1],
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
        }.items():
            connection.execute(f"SET {setting} = {value}")
        # on, it would print to stdout; in a notebook it is off, and cannot be set
        (progress,) = connection.execute("SELECT current_setting('enable_progress_bar')").fetchall()
        if progress[0]:
            connection.execute("SET enable_progress_bar = false")
        connection.execute(
            f"CREATE VIEW documents AS SELECT * FROM read_parquet({duckdb_list(surveyed)})"
        )
        found = connection.execute(
            f"""
            WITH equal AS (
                SELECT position FROM documents JOIN (
                    SELECT high, low, min(position) AS first FROM documents
                    GROUP BY high, low HAVING count(*) > 1
                ) USING (high, low)
                WHERE position > first
            ), resembling(position) AS ({near})
            SELECT position, bool_and(near) FROM (
                SELECT position, false AS near FROM equal UNION ALL SELECT position, true FROM resembling
            ) GROUP BY position ORDER BY position
            """
        )
        schema = pa.schema({"position": pa.int64(), "near": pa.int64()})
        with arrow_file(path, "wb") as stream, pq.ParquetWriter(stream, schema) as out:
            while rows := found.fetchmany(ROWS):
                values = np.array(rows, np.int64).T
                out.write_table(pa.table([column(one) for one in values], schema))


def duplicates_from(directory: Path, position: int) -> Iterator[int]:
    """The positions of duplicates from one on, in order."""
    import pyarrow.parquet as pq

    with _opened(directory / DUPLICATES) as stream, pq.ParquetFile(stream) as file:
        for group in range(file.num_row_groups):
            last = file.metadata.row_group(group).column(0).statistics
            if last is None or last.max >= position:
                found = numbers(file.read_row_group(group, ["position"])["position"])
                yield from found[found >= position].tolist()


def _chunks(directory: Path, pieces: list[Piece], settings: TokenizeSettings) -> Plan:
    """Chunks of consecutive documents of at least `part_bytes` of text; the last may be smaller."""
    import numpy as np

    plan, open_bytes = Plan(), 0  # of the chunk that is being filled
    duplicates = duplicates_from(directory, 0)
    duplicate = next(duplicates, None)
    seen: dict[CorpusFile, int] = {}  # documents of files that are cut
    for piece in pieces:
        if piece.addition and open_bytes:
            plan.sizes.append(open_bytes)
            open_bytes = 0
        tally = tally_of(directory, piece.index)
        plan.rejects += tally.rejects
        for file, part, _ in piece.spans:
            if not part.whole:
                seen[file] = seen.get(file, 0) + tally.seen
        position = piece.index << ORDINAL_BITS
        for sizes, characters in records(directory, piece.index, ["bytes", "characters"]):
            kept = np.ones(len(sizes), bool)
            while duplicate is not None and duplicate < position + len(sizes):
                kept[duplicate - position] = False
                duplicate = next(duplicates, None)
            places = position + np.flatnonzero(kept)
            ends = np.cumsum(sizes[kept], dtype=np.int64)
            done = 0  # documents of `places` that are in a chunk
            while done < len(places):
                if not open_bytes:
                    plan.positions.append(int(places[done]))
                    plan.numbers.append(plan.documents + done)
                before = int(ends[done - 1]) if done else 0
                last = int(np.searchsorted(ends, before + settings.part_bytes - open_bytes))
                if last < len(places):
                    plan.sizes.append(open_bytes + int(ends[last]) - before)
                    open_bytes, done = 0, last + 1
                else:
                    open_bytes += int(ends[-1]) - before
                    done = len(places)
            plan.documents += len(places)
            plan.duplicates += len(sizes) - len(places)
            plan.bytes += int(ends[-1]) if len(ends) else 0
            plan.characters += int(characters[kept].sum(dtype=np.int64))
            position += len(sizes)
    if open_bytes:
        plan.sizes.append(open_bytes)
    plan.rejects += sum(not count for count in seen.values())
    plan.near_duplicates = _near_duplicates(directory)
    plan.duplicates -= plan.near_duplicates
    return plan


def _near_duplicates(directory: Path) -> int:
    """How many documents are left out though no equal one came before."""
    import pyarrow.parquet as pq

    with _opened(directory / DUPLICATES) as stream, pq.ParquetFile(stream) as file:
        groups = range(file.num_row_groups)
        return sum(int(numbers(file.read_row_group(n, ["near"])["near"]).sum()) for n in groups)
