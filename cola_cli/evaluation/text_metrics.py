"""Metrics of texts that need no model: entropy, length, distinct and repeated n-grams of their tokens.

They depend on the number and the length of the texts, so they are comparable only between texts of the same
shape: `cut_passages` cuts real text to the shape of generated text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
DISTINCT = (1, 2, 3, 4)
REPEATED = (2, 3, 4)


@dataclass(frozen=True)
class Passage:
    """A text, what stood before it, and the token ids of both."""

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]


def text_metrics(texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Metrics of texts given as token ids; one is None where the texts are too short for it.

    entropy: of the unigram distribution over all texts, in bits. distinct_n: different n-grams of all texts
    over n-grams. repeated_n: share of the n-grams that occurred earlier in the same text.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    tokens = int(lengths.sum())
    found: dict[str, Any] = {
        "texts": len(texts),
        "empty": int((lengths == 0).sum()),
        "tokens": tokens,
        "mean_length": tokens / len(texts) if len(texts) else None,
        "entropy": _entropy(texts) if tokens else None,
    }
    distinct: dict[str, Any] = {}
    repeated: dict[str, Any] = {}
    for size, owners, grams in ngrams(texts, max(DISTINCT)):
        if size in DISTINCT:
            distinct[f"distinct_{size}"] = _different(grams)
        if size in REPEATED:
            # one number for the pair (text, n-gram)
            pairs = owners * (int(grams.max(initial=0)) + 1) + grams
            share = _different(pairs)
            repeated[f"repeated_{size}"] = None if share is None else 1 - share
    return found | distinct | repeated


def ngrams(
    texts: Sequence[Sequence[int]], largest: int
) -> Iterator[tuple[int, Integers, Integers]]:
    """For n = 1 ... largest: (n, text of every n-gram, number of every n-gram).

    Equal n-grams have equal numbers, counted from 0; none crosses from one text into the next.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    owners = np.repeat(np.arange(len(texts)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(
        len(owners)
    )  # tokens to the text's end
    tokens = _numbered(np.array([token for text in texts for token in text], np.int64))
    width = int(tokens.max(initial=0)) + 1
    places = np.arange(len(tokens))
    grams = tokens
    for size in range(1, largest + 1):
        if size > 1:
            kept = left[places] >= size
            places = places[kept]
            grams = _numbered(grams[kept] * width + tokens[places + size - 1])
        yield size, owners[places], grams


def cut_passages(
    documents: Callable[[], Iterable[list[int]]],
    tokens: int,
    shapes: Sequence[tuple[int, int]],
    sets: int = 1,
) -> list[list[tuple[list[int], list[int]]]]:
    """`sets` lists of (prompt ids, text ids) out of real documents, shaped as other texts are.

    documents: gives the documents' token ids, `tokens` in all, as often as called. shapes: (tokens of the
    prompt, tokens of the text) of the others. Each list holds as many text tokens as `shapes`, or fewer
    where the documents do not suffice. Passages are spread evenly over the documents, overlap nowhere and
    cross no end of a document; a document that is shorter than a shape is a passage as a whole.
    """
    shapes = [(prompt, length) for prompt, length in shapes if length]
    found: list[list[tuple[list[int], list[int]]]] = [[] for _ in range(sets)]
    if not shapes:
        return found
    missing = [sum(length for _, length in shapes)] * sets
    wanted = sets * sum(prompt + length for prompt, length in shapes)
    stride = max(1, tokens // wanted)
    for turn in range(stride):  # the first turn mostly suffices; further ones take what lay between
        number = 0
        for ids in documents():
            at = 0
            while at < len(ids):
                round_, phase = divmod(number, stride)
                prompt, length = shapes[round_ // sets % len(shapes)]
                if len(ids) - at < prompt + length:
                    if at:
                        break
                    prompt = min(prompt, len(ids) // 2)
                stop = min(len(ids), at + prompt + length)
                # to the emptiest list, so that scarce text is shared out
                target = max(range(sets), key=missing.__getitem__)
                if phase == turn:
                    text = ids[at + prompt : min(stop, at + prompt + missing[target])]
                    found[target].append((ids[at : at + prompt], text))
                    missing[target] -= len(text)
                    if not any(missing):
                        return found
                number += 1
                at = stop
    return found


def _entropy(texts: Sequence[Sequence[int]]) -> float:
    tokens = np.concatenate([np.array(text, np.int64) for text in texts])
    counts = np.unique(tokens, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _different(values: Integers) -> float | None:
    return len(np.unique(values)) / len(values) if len(values) else None


def _numbered(values: Integers) -> Integers:
    """The values replaced by their ranks, so that the next product stays far below 2^63."""
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)
