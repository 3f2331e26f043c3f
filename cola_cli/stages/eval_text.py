"""`cola eval text`: metrics of generated text, and the same metrics of real text of the same shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.artifacts.artifact import is_artifact
from cola_cli.artifacts.kinds import Tokens
from cola_cli.corpus.sequences import Sequences, split_documents
from cola_cli.corpus.tokenizer import TextTokenizer, tokenizer_of
from cola_cli.errors import InputError, UsageError
from cola_cli.evaluation.text_metrics import Passage, cut_passages, text_metrics
from cola_cli.machine.threads import choose_threads, prepare_torch
from cola_cli.reporting import Reporter
from cola_cli.stages.run import Run

if TYPE_CHECKING:
    from cola_cli.corpus.files import CorpusFile
    from cola_cli.evaluation.judge import Codec, Judge
    from cola_cli.evaluation.text_share import TrainingWords

TEXT_FIELDS = ("text", "generated", "generate")
VALIDATION = "validation"
REPLACEMENT = "�"  # what a decoder makes of a character that was cut in two


def evaluate_text(
    samples: Path,
    tokens: Path | None,
    judge_path: Path | None,
    reference: Path | None,
    size: int,
    run: Run | None = None,
) -> dict[str, Any]:
    """Metrics of the samples and of held-out text; unavailable ones are None, with a note.

    reference: held-out text instead of the validation split of `tokens`. size: n of the n-grams that are
    looked up in the training text. Raises UsageError when nothing gives a tokenizer.
    """
    run = run or Run()
    trained_on = None if tokens is None else Tokens.open(tokens)
    judge = _open_judge(judge_path, run)
    codec = _codec(trained_on, judge, reference)
    texts = [_passage(codec, *row) for row in read_texts(samples)]
    if not any(passage.ids for passage in texts):
        raise InputError(f"{samples} holds no text.", "Name samples that are not all empty.")
    notes: list[str] = []
    real, further = _real_passages(codec, judge, trained_on, reference, texts, notes)
    groups = [texts, real] if real else [texts]
    found = [text_metrics([passage.ids for passage in group]) for group in groups]
    for group, metrics in zip(groups, found, strict=True):
        metrics |= _judged(judge, group, run.reporter)
    if judge is None:
        notes.append("perplexity and mauve: no --judge was given.")
    else:
        from cola_cli.evaluation.judge import mauve_scores

        written = [passage for passage in texts if passage.ids]
        scores, note = mauve_scores(judge, [written, further], real)
        notes += [note] if note else []
        for metrics, score in zip(found, scores, strict=False):
            metrics["mauve"] = score
    shares: list[float | None] = [None] * len(groups)
    if trained_on is None:
        notes.append("memorised: no --tokens were given.")
    else:
        from cola_cli.evaluation.memorisation import memorised_shares

        ids = [[passage.ids for passage in group] for group in groups]
        shares = memorised_shares(
            trained_on, ids, size, run.reporter, choose_threads(run.threads).count
        )
    for metrics, share in zip(found, shares, strict=True):
        metrics["memorised"] = share
    return {
        "samples": found[0],
        "held_out": found[1] if real else None,
        "ngram": size,
        "judge": None if judge_path is None else str(judge_path),
        "notes": notes,
    }


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(prompt, text) of a samples artifact, or of JSONL with `text`, `generated` or `generate`."""
    from cola_cli.artifacts.rows import read_rows
    from cola_cli.stages.sample import read_samples

    if path.is_dir():
        for row in read_samples(path):
            yield row["prompt"], row["text"]
        return
    for number, row in read_rows(path):
        text = next((row[name] for name in TEXT_FIELDS if name in row), None)
        prompt = row.get("prompt") or ""
        if not isinstance(text, str) or not isinstance(prompt, str):
            raise InputError(
                f"{path}, line {number}: there is no text under {', '.join(TEXT_FIELDS)}"
                " (or the prompt is not a text).",
                "Each line needs one of them, and may have a prompt.",
            )
        yield prompt, text


def evaluate_words(samples: Path, tokens: Path) -> dict[str, Any]:
    """Shares of the words and word pairs of the samples, and of validation text, that training text has."""
    from cola_cli.evaluation.text_share import split_texts
    from cola_cli.stages.sample import read_samples

    source = Tokens.open(tokens)
    known = _training_words(tokens, source.manifest.fingerprint)
    return {
        "samples": asdict(known.share(row["text"] for row in read_samples(samples))),
        "validation": asdict(known.share(split_texts(source, VALIDATION))),
    }


@functools.lru_cache(maxsize=1)  # a study asks repeatedly
def _training_words(tokens: Path, fingerprint: str) -> TrainingWords:
    from cola_cli.evaluation.text_share import TrainingWords

    return TrainingWords(Tokens.open(tokens))


def _open_judge(path: Path | None, run: Run) -> Judge | None:
    if path is None:
        return None
    prepare_torch(run.threads)
    from cola_cli.evaluation.judge import open_judge
    from cola_cli.machine.processes import pick_device

    return open_judge(path, pick_device(run.device))


def _codec(trained_on: Tokens | None, judge: Judge | None, reference: Path | None) -> Codec:
    """The tokenizer whose tokens are counted: of --tokens, else of --reference, else of --judge."""
    if trained_on is not None:
        return tokenizer_of(trained_on)
    if reference is not None and is_artifact(reference):
        return tokenizer_of(Tokens.open(reference))
    if judge is not None:
        return judge.tokenizer
    raise UsageError(
        "nothing says which tokenizer to count with.",
        "Give --tokens (the tokens the model was trained on), or --judge.",
    )


def _passage(codec: Codec, prompt: str, text: str) -> Passage:
    # the last token of a text that was cut off may be part of a character only
    text = text.removesuffix(REPLACEMENT)
    return Passage(prompt, text, codec.encode(prompt) if prompt else [], codec.encode(text))


def _real_passages(
    codec: Codec,
    judge: Judge | None,
    trained_on: Tokens | None,
    reference: Path | None,
    texts: list[Passage],
    notes: list[str],
) -> tuple[list[Passage], list[Passage]]:
    """Held-out text in the shape of `texts`, and as much again for MAUVE's ceiling if there is enough."""
    documents = _held_out(codec, trained_on, reference)
    if documents is None:
        notes.append("held-out: there is no validation text; give --reference.")
        return [], []
    shapes = [(len(passage.prompt_ids), len(passage.ids)) for passage in texts]
    count = sum(len(ids) for ids in documents())
    sets = 2 if judge is not None and count >= 3 * sum(map(sum, shapes)) else 1
    cut = cut_passages(documents, count, shapes, sets)
    passages = [
        [Passage(_whole(codec, before), _whole(codec, ids), before, ids) for before, ids in group]
        for group in cut
    ]
    wanted = sum(length for _, length in shapes)
    got = sum(len(passage.ids) for passage in passages[0])
    if got < wanted:
        notes.append(
            f"held-out: {got:,} tokens instead of {wanted:,}, so entropy, distinct and repeated"
            " n-grams differ by that too; give more text as --reference, or fewer samples."
        )
    return passages[0], passages[1] if sets == 2 else []


def _held_out(
    codec: Codec, trained_on: Tokens | None, reference: Path | None
) -> Callable[[], Iterator[list[int]]] | None:
    """A function whose every call yields the held-out documents in tokens of `codec`."""
    source = trained_on
    if reference is not None:
        if not is_artifact(reference):
            from cola_cli.corpus.files import find_files

            return partial(_file_documents, codec, find_files([str(reference)]))
        source = Tokens.open(reference)
    if source is None or not source.split_parts(VALIDATION):
        return None
    own = tokenizer_of(source)
    return partial(_token_documents, codec, Sequences(source, VALIDATION), own)


def _file_documents(codec: Codec, files: list[CorpusFile]) -> Iterator[list[int]]:
    from cola_cli.corpus.documents import read_documents

    for file in files:
        for document in read_documents(file, "text", "file"):
            yield codec.encode(document.text)


def _token_documents(codec: Codec, source: Sequences, own: TextTokenizer) -> Iterator[list[int]]:
    same = isinstance(codec, TextTokenizer) and codec.to_bytes() == own.to_bytes()
    for ids in split_documents(source, own.end_of_text_id):
        yield ids if same else codec.encode(own.decode(ids))


def _whole(codec: Codec, ids: list[int]) -> str:
    """The text of ids cut out of a longer text, without the halves of characters at its ends."""
    return codec.decode(ids).strip(REPLACEMENT)


def _judged(judge: Judge | None, passages: list[Passage], reporter: Reporter) -> dict[str, Any]:
    if judge is None:
        return {"perplexity": None, "judged_tokens": None, "mauve": None}
    from cola_cli.evaluation.judge import perplexity

    value, count = perplexity(judge, passages, reporter)
    return {"perplexity": value, "judged_tokens": count, "mauve": None}
