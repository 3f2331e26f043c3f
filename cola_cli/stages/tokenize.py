"""Stage `tokenize`: a corpus of text files to packed token sequences and their tokenizer.

One process reads, drops duplicates and cuts the corpus into chunks of consecutive documents; the others
tokenize and pack a chunk each into one training and one validation part. Chunks depend on the text alone,
so neither kills nor the number of processes or shards change a byte.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import threading
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.artifacts import Identity, Output, Writer
from cola_cli.artifacts.files import sha256_file, sha256_text
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.artifacts.parts import recorded_parts, write_part
from cola_cli.artifacts.reading import reason
from cola_cli.errors import ColaError, InputError
from cola_cli.machine.threads import available_cores
from cola_cli.reporting import Reporter
from cola_cli.settings import result_settings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.outcome import Outcome, up_to_date
from cola_cli.stages.shards import WHOLE, Shard, begin_together, refuse_overwriting

if TYPE_CHECKING:
    from cola_cli.corpus.files import CorpusFile
    from cola_cli.machine.processes import World

SPLITS = ("train", "validation")
TOKENIZER = "tokenizer.json"
ROW_GROUP = 1024  # rows; a training reader takes one at a time


@dataclass
class Corpus:
    """The files of a corpus and what makes up its identity."""

    files: list[CorpusFile]
    digests: dict[str, dict[str, Any]]  # size, modification time and SHA-256 by file name

    @property
    def identity(self) -> str:
        """A digest of the content of all files in their order."""
        return sha256_text("".join(self.digests[file.name]["sha256"] for file in self.files))

    @property
    def bytes(self) -> int:
        """The size of all files as they lie there, packed or not."""
        return sum(int(self.digests[file.name]["bytes"]) for file in self.files)


@dataclass
class Chunk:
    """Consecutive documents that become the parts 2 * index and 2 * index + 1."""

    index: int
    documents: list[tuple[int, str, bool]] = field(default_factory=list)  # number, text, validation
    bytes: int = 0
    read: int = 0  # bytes of the files that were read for it
    first: str = ""


@dataclass
class Reading:
    """What was counted while the corpus was read."""

    documents: int = 0
    duplicates: int = 0
    rejects: int = 0
    bytes: int = 0
    read: int = 0  # bytes of the files as they lie there, packed or not

    def advance(self, count: int) -> None:
        """`count` more bytes of the files were read."""
        self.read += count


def tokenize(
    corpus: list[str],
    output: Path,
    settings: TokenizeSettings,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    shard: Shard = WHOLE,
) -> Outcome:
    """Make the tokens artifact at `output`.

    corpus: files, folders, patterns and URLs; tokenizer: a `tokenizer.json`, or None to train one. With
    `shard` (i, n) every process reads the whole corpus, as duplicates are dropped across it, but tokenizes
    only every n-th chunk from chunk i; a run without it makes what is missing and commits the artifact.
    Under torchrun every process takes its shard and the first commits.
    Raises InputError for text that cannot be used, naming file and line or row.
    """
    from cola_cli.reporting import Silent

    report = reporter or Silent()
    found = find_corpus(corpus, output)
    inputs = {"corpus": found.identity}
    if tokenizer is not None:
        if not tokenizer.is_file():
            raise InputError(f"{tokenizer} is not a file.", "Give the tokenizer.json itself.")
        inputs["tokenizer"] = sha256_file(tokenizer)
    chosen = result_settings(settings)
    if tokenizer is not None:
        del chosen["vocab_size"], chosen["sample_bytes"]
    identity = Identity(stage="tokenize", settings=chosen, inputs=inputs)
    reads = [Path(file.name) for file in found.files if file.filesystem is None]
    place = Output.open(
        output,
        "tokens",
        identity,
        settings.model_dump(mode="json"),
        overwrite,
        [*reads, *filter(None, (tokenizer,))],
    )
    if place.up_to_date:
        return up_to_date(place)
    environment = {"corpus": found.digests}

    def make_tokenizer(writer: Writer) -> None:
        _make_tokenizer(writer, found.files, settings, tokenizer, report)

    with _joined() as world:
        if world is not None:
            shard = (world.rank, world.size)
        if shard != WHOLE:
            refuse_overwriting(overwrite)
            begin_together(place, environment, output / TOKENIZER, make_tokenizer)
            _make_parts(recorded_parts(output), output, found, settings, report, shard)
            if world is not None:
                world.wait()
            if world is None or not world.leads:
                return Outcome(output, True, {"parts": len(recorded_parts(output))})
        with place.writing(environment) as writer:
            make_tokenizer(writer)
            counted = _make_parts(writer.parts, writer.path, found, settings, report)
            statistics = _statistics(writer, settings, counted)
            writer.finish(statistics)
    return Outcome(output, True, statistics)


@contextlib.contextmanager
def _joined() -> Iterator[World | None]:
    """The processes under torchrun; None without it, so that torch need not be there."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    from cola_cli.machine.processes import joined

    with joined("cpu") as world:
        yield world


def find_corpus(names: list[str], output: Path) -> Corpus:
    """The corpus files with their digests; a file unchanged in size and time is not hashed again."""
    from cola_cli.corpus.files import find_files

    remembered: dict[str, Any] = {}
    with contextlib.suppress(ColaError):  # nothing there yet, or something Output.open will name
        remembered = read_manifest(output).environment.get("corpus", {})
    digests: dict[str, dict[str, Any]] = {}
    files = find_files(names)
    for file in files:
        try:
            size, modified = file.state()
            known = remembered.get(file.name)
            if isinstance(known, dict) and modified and _same(known, size, modified):
                digests[file.name] = known
            else:
                seen = {"bytes": size, "modified": modified}
                digests[file.name] = seen | {"sha256": file.sha256()}
        except Exception as error:
            if isinstance(error, ColaError) or not (file.filesystem or isinstance(error, OSError)):
                raise
            raise InputError(f"{file} cannot be read ({reason(error)}).", "Check it.") from error
    return Corpus(files, digests)


def _same(known: dict[str, Any], size: int, modified: int) -> bool:
    """Whether a file is, by size and time, the one whose digest is known."""
    unchanged = known.get("bytes") == size and known.get("modified") == modified
    return unchanged and isinstance(known.get("sha256"), str)


def read_corpus(
    files: list[CorpusFile], settings: TokenizeSettings, counted: Reading
) -> Iterator[tuple[int, str, bool, str]]:
    """(number, text, is validation, place) of every document that is neither empty nor a duplicate."""
    from cola_cli.corpus.documents import read_documents
    from cola_cli.corpus.packing import document_digest, is_validation

    seen: set[bytes] = set()
    for file in files:
        found = read_documents(file, settings.text_field, settings.documents, counted.advance)
        for document in found:
            text = document.text
            if settings.normalize == "nfc":
                text = unicodedata.normalize("NFC", text)
            if not text.strip():
                counted.rejects += 1
                continue
            digest = document_digest(text)
            if digest in seen:
                counted.duplicates += 1
                continue
            seen.add(digest)
            counted.bytes += len(text.encode())
            validation = is_validation(digest, settings.validation_fraction, settings.seed)
            yield counted.documents, text, validation, f"{file}, {document.place}"
            counted.documents += 1


def _make_tokenizer(
    writer: Writer,
    files: list[CorpusFile],
    settings: TokenizeSettings,
    given: Path | None,
    report: Reporter,
) -> None:
    from cola_cli.corpus.tokenizer import load_tokenizer, train_tokenizer

    if TOKENIZER in writer.kept:
        return  # made by the interrupted run
    if given is not None:
        made = load_tokenizer(given)
    else:
        report.note(f"training a tokenizer with {settings.vocab_size} tokens")
        made = train_tokenizer(_training_sample(files, settings), settings.vocab_size)
    writer.write(TOKENIZER, made.to_bytes())
    writer.keep(TOKENIZER)


def _training_sample(files: list[CorpusFile], settings: TokenizeSettings) -> Iterator[str]:
    """Training documents, at most `sample_bytes` of text, an equal share from every file."""
    share = max(1, settings.sample_bytes // len(files))
    for file in files:
        taken = 0
        for _, text, validation, _ in read_corpus([file], settings, Reading()):
            if not validation:
                yield text
                taken += len(text)
            if taken >= share:
                break


def _chunks(
    files: list[CorpusFile], settings: TokenizeSettings, counted: Reading
) -> Iterator[Chunk]:
    chunk, before = Chunk(0), 0
    for number, text, validation, place in read_corpus(files, settings, counted):
        if not chunk.documents:
            chunk.first = place
        chunk.documents.append((number, text, validation))
        chunk.bytes += len(text.encode())
        if chunk.bytes >= settings.part_bytes:
            chunk.read, before = counted.read - before, counted.read
            yield chunk
            chunk = Chunk(chunk.index + 1)
    if chunk.documents:
        chunk.read = counted.read - before
        yield chunk


def _make_parts(
    done: Collection[int],
    output: Path,
    corpus: Corpus,
    settings: TokenizeSettings,
    report: Reporter,
    shard: Shard = WHOLE,
) -> Reading:
    counted = Reading()

    def missing() -> Iterator[Chunk]:
        for chunk in _chunks(corpus.files, settings, counted):
            made = 2 * chunk.index in done and 2 * chunk.index + 1 in done
            if made or chunk.index % shard[1] != shard[0]:
                report.advance(chunk.read)
            else:
                yield chunk

    workers = settings.workers or available_cores()
    report.start("tokenize", corpus.bytes, "B")
    _run_all(missing(), output, settings, workers, report.advance)
    report.stop()
    if not counted.documents:
        raise InputError("the corpus holds no text.", "Give files with text in them.")
    return counted


def _run_all(
    chunks: Iterator[Chunk],
    directory: Path,
    settings: TokenizeSettings,
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Tokenize the chunks, in worker processes once there are two of them; few are held at a time."""
    first = list(itertools.islice(chunks, 2))
    if workers == 1 or len(first) < 2:
        for chunk in itertools.chain(first, chunks):
            _tokenize_chunk(chunk, directory, settings)
            advance(chunk.read)
        return
    # spawn: forking a process that has threads (tokenizers, pyarrow) can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        waiting: dict[Future[None], int] = {}

        def settle(futures: Iterable[Future[None]]) -> None:
            for future in futures:
                future.result()
                advance(waiting.pop(future))

        try:
            for chunk in itertools.chain(first, chunks):
                future = pool.submit(_tokenize_chunk, chunk, directory, settings)
                waiting[future] = chunk.read
                if len(waiting) > 2 * workers:
                    settle(wait(waiting, return_when=FIRST_COMPLETED).done)
            settle(as_completed(list(waiting)))
        except BrokenProcessPool as error:
            raise ColaError(
                "a tokenizing process was killed, perhaps for want of memory.",
                "Run the same command again with fewer --workers; what is finished is kept.",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    import signal

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one chunk a process is parallel enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells its workers nothing, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _tokenize_chunk(chunk: Chunk, directory: Path, settings: TokenizeSettings) -> None:
    """Write the training part and the validation part of one chunk."""
    from cola_cli.corpus.packing import Row, pack
    from cola_cli.corpus.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(directory / TOKENIZER)
    for offset, split in enumerate(SPLITS):
        documents = [d for d in chunk.documents if d[2] == (split == "validation")]
        ids = tokenizer.encode_batch([text for _, text, _ in documents])
        numbered = [(number, tokens) for (number, _, _), tokens in zip(documents, ids, strict=True)]
        rows: list[Row] = list(pack(numbered, settings.seq_len, tokenizer.end_of_text_id))
        with write_part(directory, 2 * chunk.index + offset, source=chunk.first) as part:
            _write_rows(part.path, rows, settings.seq_len, tokenizer.pad_id)
            part.rows = len(rows)
            part.tokens = sum(len(row.tokens) for row in rows)
            part.statistics = {
                "split": split,
                "documents": len(documents),
                "bytes": sum(len(text.encode()) for _, text, _ in documents),
            }


def _write_rows(path: Path, rows: list[Any], seq_len: int, pad_id: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokens = np.full((len(rows), seq_len), pad_id, dtype=np.int32)
    for row, target in zip(rows, tokens, strict=True):
        target[: len(row.tokens)] = row.tokens
    segment = pa.struct([("document", pa.int64()), ("offset", pa.int32()), ("length", pa.int32())])
    names = ("document", "offset", "length")
    segments = [[dict(zip(names, s, strict=True)) for s in row.segments] for row in rows]
    table = pa.table(
        {
            "tokens": pa.ListArray.from_arrays(
                np.arange(len(rows) + 1, dtype=np.int32) * seq_len, tokens.ravel()
            ),
            "length": pa.array([len(row.tokens) for row in rows], pa.int32()),
            "segments": pa.array(segments, pa.list_(segment)),
        }
    )
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)


def _statistics(writer: Writer, settings: TokenizeSettings, counted: Reading) -> dict[str, Any]:
    from cola_cli.corpus.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(writer.path / TOKENIZER)
    parts = recorded_parts(writer.path).values()
    splits = {}
    for split in SPLITS:
        own = [part for part in parts if part.statistics["split"] == split]
        splits[split] = {
            "documents": sum(part.statistics["documents"] for part in own),
            "bytes": sum(part.statistics["bytes"] for part in own),
            "rows": sum(part.rows for part in own),
            "tokens": sum(part.tokens for part in own),
        }
    tokens = sum(split["tokens"] for split in splits.values())
    if splits["train"]["tokens"] < settings.seq_len:
        raise InputError(
            f"the corpus has {splits['train']['tokens']} training tokens,"
            f" less than one sequence of {settings.seq_len}.",
            "Give more text or a smaller --seq-len.",
        )
    return {
        "documents": counted.documents,
        "bytes": counted.bytes,
        "tokens": tokens,
        "bytes_per_token": counted.bytes / tokens,
        "duplicates": counted.duplicates,
        "rejects": counted.rejects,
        "seq_len": settings.seq_len,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text_id": tokenizer.end_of_text_id,
        "pad_id": tokenizer.pad_id,
        "splits": splits,
    }
