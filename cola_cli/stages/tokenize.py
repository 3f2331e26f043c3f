"""Stage `tokenize`: a corpus of text files to packed token sequences and their tokenizer.

The corpus is read twice: a survey finds duplicates and cuts it into chunks of consecutive documents, each of
which is then tokenized and packed into one training and one validation part. Processes and shards take pieces
of the survey, and chunks.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.artifacts import Identity, Output, Writer, mirror
from cola_cli.artifacts.files import remove_directory, sha256_file
from cola_cli.artifacts.kinds import (
    TOKENIZER,
    SplitStatistics,
    Tokens,
    TokensPart,
    TokensStatistics,
)
from cola_cli.artifacts.lock import Claims, locked, writer_lock
from cola_cli.artifacts.manifest import Manifest, read_manifest
from cola_cli.artifacts.mirror import HERE
from cola_cli.artifacts.parts import require_few, write_part
from cola_cli.corpus.additions import ancestors, grown
from cola_cli.corpus.chats import REMEDY, MalformedChat, template_beside, template_of
from cola_cli.corpus.chunks import Chunk, Text, read_chunks, training_sample
from cola_cli.corpus.documents import ChangedFile
from cola_cli.corpus.packing import PackedRow, pack, separated, write_rows
from cola_cli.corpus.parallel import run_all
from cola_cli.corpus.sources import Corpus, find_corpus
from cola_cli.corpus.survey import (
    CHUNKS,
    Piece,
    Plan,
    damage_told,
    make_plan,
    pieces_of,
    read_plan,
    record_of,
    scratch_of,
    survey,
)
from cola_cli.corpus.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from cola_cli.errors import ColaError, InputError, OutputConflict, UsageError
from cola_cli.machine.launcher import launched
from cola_cli.machine.threads import available_cores
from cola_cli.reporting import Reporter
from cola_cli.settings import result_settings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.run import Outcome, Run, open_output, up_to_date
from cola_cli.stages.shards import (
    WHOLE,
    Shard,
    has_begun,
    make_artifact,
    refuse_overwriting,
    refuse_sharing,
)

if TYPE_CHECKING:
    from cola_cli.machine.processes import World

SPLITS = ("train", "validation")
SURVEY_BYTES = 64 << 20  # of a corpus, for which another process is worth its start
LITTLE = 0.001  # share of lost characters above which it is a warning


def tokenize(
    corpus: list[str],
    output: Path,
    settings: TokenizeSettings,
    tokenizer: Path | None = None,
    run: Run | None = None,
    shard: Shard = WHOLE,
    add: bool = False,
) -> Outcome:
    """Make the tokens artifact at `output`.

    add: to one that lies there, parts for files that are new; with its tokenizer, after those that it has.
    corpus: files, folders, patterns and URLs; tokenizer: a `tokenizer.json`, or None to train one. With
    `shard` (i, n) a process surveys what no other does and makes the i-th n-th of the chunks; a run without
    it makes what is missing and commits the artifact. Under torchrun every process takes its shard and the
    first commits.
    Raises InputError for text that cannot be used, naming file and line or row.
    """
    run = run or Run()
    report = run.reporter
    before = read_manifest(output) if add else None
    if settings.chat:
        template = settings.chat_template or template_beside(tokenizer)
        settings = settings.model_copy(update={"chat_template": template})
        template_of(template)
    elif settings.chat_template is not None:
        raise UsageError("--chat-template is for conversations.", "Give --chat too, or drop it.")
    if settings.near_duplicates is not None:
        from cola_cli.corpus.near_duplicates import require_library

        require_library()
    chosen, given = _decisive(settings, tokenizer, before)

    def opened() -> tuple[Corpus, Output, Tokens | None]:
        found = grown(corpus, output, before) if before else find_corpus(corpus, output)
        if str(found.left_out):
            report.note(f"left out of the corpus: {found.left_out}")
        reads = [Path(file.name) for file in found.files if file.filesystem is None]
        reads += [tokenizer] if tokenizer is not None else []
        inputs = found.inputs | given
        old = _growing(output, before, chosen, inputs) if before else None
        how = replace(run, overwrite=True) if old else run
        ways = " --add makes parts for new files beside those that are there."
        place = open_output(
            output, "tokens", "tokenize", settings, inputs, how, reads, chosen, ways
        )
        return found, place, old

    with _joined(settings.timeout) as world:
        if world is not None:
            shard = (world.rank, world.size)
        if add:
            refuse_sharing("--add", shard)
        if shard == WHOLE:
            found, place, old = opened()
        else:
            refuse_overwriting(run.overwrite)
            # the first has the digests of the files and the tokenizer made; the others find them
            with writer_lock(output, math.inf):
                found, place, old = opened()
                if not place.up_to_date and not has_begun(place, output / TOKENIZER):
                    with place.writing({"corpus": found.digests}, held=True) as writer:
                        _make_tokenizer(writer, found, settings, tokenizer, report)
        if place.up_to_date:
            return up_to_date(place)

        def begin(writer: Writer) -> None:
            if old:
                writer.take_over(old)
                writer.write(TOKENIZER, old.file(TOKENIZER).read_bytes())
                writer.keep(TOKENIZER)
            _make_tokenizer(writer, found, settings, tokenizer, report)

        def make(done: Collection[int], own: Shard) -> None:
            try:
                _make_parts(done, place.place, place.identity, found, settings, report, own)
            except (ColaError, OSError):
                # else other shards have completed it meanwhile
                if own == WHOLE or read_manifest(output).status != "complete":
                    raise

        def finish(writer: Writer) -> dict[str, Any]:
            plan = read_plan(scratch_of(writer.path, place.identity.fingerprint))
            statistics = _statistics(writer, settings, plan, found.left_out.counts())
            _say(statistics, report)
            return statistics.model_dump(mode="json", exclude_none=True)

        environment = {"corpus": found.digests}
        return make_artifact(place, environment, run, shard, make, finish, begin, world)


def _decisive(
    settings: TokenizeSettings, tokenizer: Path | None, before: Manifest | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that decide the tokens, and the digest of a tokenizer that is given."""
    chosen = result_settings(settings)
    if settings.end_of_text is None:
        del chosen["end_of_text"]
    given = {}
    if tokenizer is not None:
        if not tokenizer.is_file():
            raise InputError(f"{tokenizer} is not a file.", "Give the tokenizer.json itself.")
        given = {"tokenizer": sha256_file(tokenizer)}
        load_tokenizer(tokenizer, settings.end_of_text)
    elif before and "tokenizer" in before.identity.inputs:
        given = {"tokenizer": before.identity.inputs["tokenizer"]}
    elif settings.end_of_text is not None:
        raise UsageError(
            "--end-of-text names a token of a given tokenizer.", "Give --tokenizer too, or drop it."
        )
    if given:
        del chosen["vocab_size"], chosen["sample_bytes"]
    return chosen, given


def _growing(
    output: Path, before: Manifest, chosen: dict[str, Any], inputs: dict[str, str]
) -> Tokens | None:
    """The finished artifact at `output` that grows to one of these inputs; None if it has them."""
    identity = before.identity.model_copy(update={"settings": chosen, "inputs": inputs})
    if identity == before.identity:
        return None
    if before.fingerprint not in ancestors(identity)[:1]:
        listed = "; ".join(before.identity.differences(identity))
        raise OutputConflict(
            f"nothing can be added to {output} with other settings or another tokenizer: {listed}.",
            "Leave these settings out, or choose another output directory.",
        )
    return Tokens.open(output)


@contextlib.contextmanager
def _joined(timeout: float) -> Iterator[World | None]:
    """The processes under torchrun; None without it, so that torch need not be there."""
    if launched() is None:
        yield None
        return
    from cola_cli.machine.processes import joined

    with joined("cpu", timeout) as world:
        yield world


def _make_tokenizer(
    writer: Writer,
    corpus: Corpus,
    settings: TokenizeSettings,
    given: Path | None,
    report: Reporter,
) -> None:
    if TOKENIZER in writer.kept:
        return  # made by the interrupted run
    if given is not None:
        made = load_tokenizer(given, settings.end_of_text)
        if made.added:
            has = ", ".join(made.special_tokens) or "none"
            report.note(
                f"added the special tokens {' and '.join(made.added)}, which the tokenizer lacks;"
                f" --end-of-text names another end of documents (its special tokens: {has})"
            )
    else:
        report.note(f"training a tokenizer with {settings.vocab_size} tokens")
        made = _trained(corpus, settings)
    writer.write(TOKENIZER, made.to_bytes())
    writer.keep(TOKENIZER)


def _trained(corpus: Corpus, settings: TokenizeSettings) -> TextTokenizer:
    place = ""

    def texts() -> Iterator[str]:
        nonlocal place
        for document in training_sample(corpus, settings):
            place = document.place
            yield document.text

    try:
        return train_tokenizer(texts(), settings.vocab_size)
    except ValueError as error:
        raise _too_long(place, error) from error


def _too_long(place: str, error: ValueError) -> InputError:
    return InputError(f"{place}: {error}.", "Break the text into lines or into documents.")


def _make_parts(
    done: Collection[int],
    output: Path,
    identity: Identity,
    corpus: Corpus,
    settings: TokenizeSettings,
    report: Reporter,
    shard: Shard,
) -> None:
    scratch = scratch_of(output, identity.fingerprint)
    workers = settings.workers or available_cores()
    pieces = pieces_of(corpus, settings)
    with damage_told(scratch):
        plan = _surveyed(pieces, scratch, settings, workers, report, shard)
    if not plan.documents:
        raise InputError(f"the corpus holds no text ({plan}).", "Give files with text in them.")
    require_few(2 * len(plan.sizes))
    first, stop = (len(plan.sizes) * n // shard[1] for n in (shard[0], shard[0] + 1))
    there = {*done}
    missing = [n for n in range(first, stop) if not {2 * n, 2 * n + 1} <= there]
    total, left = sum(plan.sizes[first:stop]), sum(plan.sizes[n] for n in missing)
    report.start("tokenize", total, "B", total - left)
    work = functools.partial(
        _tokenize_chunk,
        directory=output,
        identity=identity,
        settings=settings,
        shared=shard != WHOLE,
    )
    try:
        with damage_told(scratch):
            found = read_chunks(pieces, plan, scratch, settings, missing)
            run_all(work, found, max(1, min(workers, len(missing))), report.advance)
    except ChangedFile:
        remove_directory(scratch)
        raise
    report.stop()


def _surveyed(
    pieces: list[Piece],
    scratch: Path,
    settings: TokenizeSettings,
    workers: int,
    report: Reporter,
    shard: Shard,
) -> Plan:
    """The plan of the corpus, once all its pieces have been surveyed, here and by other processes."""
    size = sum(piece.bytes for piece in pieces)
    chunks = scratch / CHUNKS
    report.start("survey", size, "B")
    with Claims(scratch / HERE / "claims") as claims:

        def unsurveyed() -> Iterator[Piece]:
            """Pieces that nobody surveys yet: those of this shard first, what killed processes left last.

            Of other machines only what they have finished is known. So the rest goes in any order: two that
            help a third rarely meet.
            """
            first, stop = (len(pieces) * n // shard[1] for n in (shard[0], shard[0] + 1))
            left = pieces[first:stop]
            rest = pieces[stop:] + pieces[:first]
            left += random.sample(rest, len(rest))
            while left and not mirror.exists(chunks):
                mirror.list_below(scratch)
                others = []
                for piece in left:
                    record = record_of(scratch, piece.index)
                    if mirror.exists(record) or (claims.take(piece.index) and record.exists()):
                        report.advance(piece.bytes)
                    elif claims.take(piece.index):
                        yield piece
                    else:
                        others.append(piece)
                if others and len(others) == len(left):
                    claims.wait(others[0].index)
                left = others

        work = functools.partial(survey, settings=settings, directory=scratch)
        run_all(work, unsurveyed(), min(workers, 1 + size // SURVEY_BYTES), report.advance)
        report.stop()
        while not mirror.exists(chunks):
            if claims.take(len(pieces)):
                with locked(scratch, math.inf):
                    if not mirror.exists(chunks):
                        make_plan(scratch, pieces, settings)
            else:
                claims.wait(len(pieces))
    return read_plan(scratch)


def _tokenize_chunk(
    chunk: Chunk, directory: Path, identity: Identity, settings: TokenizeSettings, shared: bool
) -> None:
    """Write the training part and the validation part of one chunk."""
    file = (directory / TOKENIZER).stat()
    tokenizer = _loaded(directory / TOKENIZER, settings.end_of_text, file.st_size, file.st_mtime_ns)
    packing = settings.seq_len, tokenizer.end_of_text_id
    for offset, split in enumerate(SPLITS):
        documents = [d for d in chunk.documents if d.validation == (split == "validation")]
        lost, rejects = 0, 0

        def numbered(documents: list[Text] = documents) -> Iterator[tuple[int, Sequence[int]]]:
            nonlocal lost
            ids = tokenizer.encode_documents(d.text for d in documents)
            for document in documents:
                try:
                    tokens = next(ids)
                except ValueError as error:
                    raise _too_long(document.place, error) from error
                if not tokenizer.keeps_all_text:
                    lost += tokenizer.lost(document.text, tokens)
                yield document.number, tokens

        rows: Iterator[PackedRow] = pack(numbered(), *packing)
        if settings.separate:  # each has rows of its own at first
            rows = (row for one in numbered() for row in pack([one], *packing))
        if settings.chat:
            made = [(d, row) for d in documents if (row := _conversation(d, tokenizer, settings))]
            rejects, documents = len(documents) - len(made), [d for d, _ in made]
            rows = (row for _, row in made)
            if not tokenizer.keeps_all_text:
                lost = sum(tokenizer.lost(d.text, tokenizer.encode(d.text)) for d in documents)
        if settings.separate:
            rows = separated(rows, settings.seq_len, settings.separate)
        index = 2 * chunk.index + offset
        with write_part(directory, index, identity, chunk.first, shared=shared) as part:
            part.rows, part.tokens = write_rows(
                part.path,
                rows,
                settings.seq_len,
                tokenizer.pad_id,
                settings.chat,
                settings.separate > 0,
            )
            part.statistics = {
                "split": split,
                "documents": len(documents),
                "bytes": sum(len(d.text.encode()) for d in documents),
            }
            if lost:
                part.statistics["lost_characters"] = lost
            if rejects:
                part.statistics["rejects"] = rejects


def _conversation(
    document: Text, tokenizer: TextTokenizer, settings: TokenizeSettings
) -> PackedRow | None:
    """The sequence of a conversation, end-of-text last; None for one that is to be left out."""
    try:
        template, most = template_of(settings.chat_template or ""), settings.seq_len
        ids, own = template.answered(document.chat, tokenizer, most)
        if ids[-1] != tokenizer.end_of_text_id:
            ids, own = [*ids, tokenizer.end_of_text_id], [*own, False]
        if len(ids) > most:
            raise MalformedChat(f"it has more than the {most:,} tokens of a sequence (--seq-len)")
    except MalformedChat as error:
        if settings.malformed == "skip":
            return None
        raise InputError(f"{document.place}: {error}.", REMEDY) from error
    return PackedRow(ids, [(document.number, 0, len(ids))], own)


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, end_of_text: str | None, size: int, modified: int) -> TextTokenizer:
    """The tokenizer of one chunk after another; `size` and `modified` are of its file."""
    return load_tokenizer(path, end_of_text)


def _statistics(
    writer: Writer, settings: TokenizeSettings, plan: Plan, left_out: dict[str, int]
) -> TokensStatistics:
    output = writer.path
    tokenizer = load_tokenizer(output / TOKENIZER, settings.end_of_text)
    parts = [(r, TokensPart.of(r.statistics, output / r.file)) for r in writer.recorded()]
    splits = {}
    for split in SPLITS:
        own = [(record, part) for record, part in parts if part.split == split]
        splits[split] = SplitStatistics(
            documents=sum(part.documents for _, part in own),
            bytes=sum(part.bytes for _, part in own),
            rows=sum(record.rows for record, _ in own),
            tokens=sum(record.tokens for record, _ in own),
        )
    if splits["train"].tokens < (1 if settings.chat or settings.separate else settings.seq_len):
        raise InputError(
            f"the corpus has {splits['train'].tokens} training tokens ({plan}),"
            f" less than one sequence of {settings.seq_len}.",
            "Give more text or a smaller --seq-len.",
        )
    tokens = sum(split.tokens for split in splits.values())
    size = sum(split.bytes for split in splits.values())
    lost = sum(part.lost_characters for _, part in parts)
    return TokensStatistics(
        documents=sum(split.documents for split in splits.values()),
        bytes=size,
        tokens=tokens,
        bytes_per_token=size / tokens,
        duplicates=plan.duplicates,
        near_duplicates=None if settings.near_duplicates is None else plan.near_duplicates,
        rejects=plan.rejects + sum(part.rejects for _, part in parts),
        seq_len=settings.seq_len,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        pad_id=tokenizer.pad_id,
        splits=splits,
        lost_characters=lost or None,
        lost_share=lost / plan.characters if lost else None,
        left_out=left_out or None,
        chat_template=settings.chat_template,
        separate=settings.separate or None,
    )


def _say(statistics: TokensStatistics, report: Reporter) -> None:
    """Warn of what would be a surprise later."""
    if (share := statistics.lost_share or 0.0) > LITTLE:
        report.warn(
            f"the tokenizer has no tokens for {share:.1%} of the text"
            f" ({statistics.lost_characters:,} characters): models will never see it"
        )
    if not statistics.splits["validation"].rows:
        report.warn(
            "no document is held out for validation, which training needs: give more documents (they are held"
            " out whole) or a larger --validation-fraction"
        )
