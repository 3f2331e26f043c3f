"""How much of generated text is made of words and word pairs that the training text has.

To compare with: the same shares of validation text, which is real but was not trained on either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from cola_cli.artifacts.kinds import Tokens
from cola_cli.corpus.sequences import Sequences
from cola_cli.corpus.tokenizer import tokenizer_of

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
BATCH = 256  # sequences decoded at a time


@dataclass(frozen=True)
class TextShare:
    """Shares in [0, 1] of words and of neighbouring word pairs that occur in the training text.

    None where a text has none.
    """

    words: float | None
    pairs: float | None
    count: int  # words looked at


class TrainingWords:
    """The words and word pairs of the training split of a tokens artifact."""

    def __init__(self, tokens: Tokens) -> None:
        self.words: set[str] = set()
        self.pairs: set[tuple[str, str]] = set()
        for text in split_texts(tokens, "train"):
            found = words_of(text)
            self.words.update(found)
            self.pairs.update(pairwise(found))

    def share(self, texts: Iterable[str]) -> TextShare:
        """The shares of some texts. The last word of a text is left out: it may be cut off."""
        known_words = known_pairs = words = pairs = 0
        for text in texts:
            found = words_of(text)[:-1]
            words += len(found)
            known_words += sum(word in self.words for word in found)
            neighbours = list(pairwise(found))
            pairs += len(neighbours)
            known_pairs += sum(pair in self.pairs for pair in neighbours)
        return TextShare(
            known_words / words if words else None, known_pairs / pairs if pairs else None, words
        )


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without numbers and punctuation."""
    return WORD.findall(text.lower())


def split_texts(tokens: Tokens, split: str) -> Iterator[str]:
    """The text of every sequence of a split, as the tokenizer decodes it."""
    tokenizer = tokenizer_of(tokens)
    for rows in Sequences(tokens, split).batches(BATCH):
        for ids, real in zip(rows.tokens, rows.is_text, strict=True):
            yield tokenizer.decode(ids[real].tolist())
