"""Byte-level BPE tokenizers: trained here, or any Hugging Face `tokenizer.json`."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from cola_cli.artifacts.kinds import TOKENIZER, TypedArtifact
from cola_cli.artifacts.reading import decoded, parse_record, read_file, reason, shown
from cola_cli.errors import InputError, UsageError, is_encodable

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eot_id|>")
PAD = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>")
TOKENIZER_LIMIT = 512 << 20  # bytes
ID_LIMIT = 1 << 24  # of a token: the library takes memory for every number up to the largest
BYTES = 256
PROBE = "An Ünknown wörd, 日本 \x00\ue000"
# Characters that are tokenized at a time: the library takes some 250 bytes of memory for each.
PIECE = 1 << 18
UNCUT_LIMIT = 1 << 23  # characters of a stretch that has no place where it could be cut
SEAM = 256  # characters on each side of a cut that are tokenized to check it
# Places to cut at, the most likely first: before a space after a word, between punctuation and a word,
# before any space.
CUTS = [
    re.compile(r"(?<=\w)(?= \w)"),
    re.compile(r"(?<=[^\w\s])(?=\w)"),
    re.compile(r"(?<=\S)(?=\s)"),
]
TRIES = 4  # of each kind
# The words of ASCII text by the pattern of a byte-level BPE (GPT-2's), and places in any text where one
# always ends: no alternative of the pattern matches a letter and the space after it.
WORDS = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^A-Za-z0-9\t-\r ]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
)
WORD_ENDS = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")
WORD_LIMIT, WORDS_LIMIT = 64, 1 << 19  # characters of a word that is remembered; how many are


class TextTokenizer:
    """A tokenizer with its end-of-text and pad tokens, found by name or added.

    Neither of the two ever comes from text: they mark the ends of documents and the padding alone.
    Attributes: end_of_text_id; pad_id; vocab_size; keeps_all_text, whether every text comes back from its
    tokens; added, the names of the tokens of the two that the tokenizer lacked.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text: str | int | None = None) -> None:
        """`end_of_text`: name or id of the end-of-text token, None to look for the usual names.

        Raises UsageError when the tokenizer has no such token.
        """
        self._tokenizer = tokenizer
        self.added: list[str] = []
        if end_of_text is None:
            self.end_of_text_id = self._special(END_OF_TEXT)
        else:
            self.end_of_text_id = self._named(end_of_text)
        self.pad_id = self._special(PAD)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.keeps_all_text = _keeps_all_text(tokenizer)
        self._known = _Words(self.encode) if _splits_words(tokenizer) else None

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens that the tokenizer came with."""
        return [*self._marks]

    @property
    def special_ids(self) -> Collection[int]:
        """Their ids."""
        return self._marks.values()

    @property
    def end_of_text(self) -> str:
        """The name of the end-of-text token, if the tokenizer came with it as a special one."""
        name = self.name_of(self.end_of_text_id)
        return name if name in self._marks else ""

    @cached_property
    def _marks(self) -> dict[str, int]:
        tokens = self._tokenizer.get_added_tokens_decoder().items()
        return {t.content: n for n, t in tokens if t.special and t.content not in self.added}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added. Raises InputError for half of a surrogate pair.

        TypeError for what is not a text.
        """
        if not isinstance(text, str):
            raise TypeError(f"a {type(text).__name__} is not a text (str)")
        if not is_encodable(text):
            raise InputError(f"the text '{shown(text, 40)}' is not UTF-8.", "Give it in UTF-8.")
        return self._ids(text, self._tokenizer.encode(text, add_special_tokens=False))

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of a text in which names of special tokens stand for these, as templates have them."""
        names = self._marks
        if not names:
            return self.encode(text)
        parts = re.split(
            "(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")", text
        )
        return [
            token
            for part in parts
            for token in ([names[part]] if part in names else self.encode(part))
        ]

    def encode_documents(self, texts: Iterable[str]) -> Iterator[array[int]]:
        """Token ids of many texts, as `encode` gives them, in memory for `PIECE` characters at a time.

        Raises ValueError for a text with a longer stretch than `UNCUT_LIMIT` that cannot be cut.
        """
        held: list[str] = []
        size = 0
        for text in texts:
            if held and size + len(text) > PIECE:
                yield from self._encode_batch(held)
                held, size = [], 0
            if len(text) > PIECE:
                encode = self.encode if self._known is None else self._known.encode
                ids = array("i")
                for piece in cut(self._tokenizer, text):
                    ids.extend(encode(piece))
                yield ids
            elif self._known is not None:
                yield self._known.encode(text)
            else:
                held.append(text)
                size += len(text)
        yield from self._encode_batch(held)

    def _encode_batch(self, texts: list[str]) -> Iterator[array[int]]:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            yield array("i", self._ids(text, encoding))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids beyond the vocabulary are passed over."""
        known = [token for token in ids if token < self.vocab_size]
        return self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The text that `ids` add to a prompt.

        Decoded alone they would lose the space before their first word with tokenizers that mark words.
        """
        before, whole = self.decode(prompt), self.decode([*prompt, *ids])
        return whole[len(os.path.commonprefix([before, whole])) :]  # noqa: RUF071 - of texts

    def name_of(self, token: int) -> str:
        """The text of one token as the vocabulary has it."""
        return self._tokenizer.id_to_token(token) or ""

    def lost(self, text: str, ids: Sequence[int]) -> int:
        """Characters of a text (white space aside) that its tokens do not give back, letter case aside."""
        decoded = self.decode(ids)
        if decoded == text:
            return 0
        return (_letters(text) - _letters(decoded)).total()

    def to_bytes(self) -> bytes:
        """The content of `tokenizer.json`."""
        return self._tokenizer.to_str(pretty=True).encode()

    def _ids(self, text: str, encoding: Any) -> list[int]:
        ids: list[int] = encoding.ids
        if self.end_of_text_id not in ids and self.pad_id not in ids:
            return ids
        # the text spells a token that only cola may set, or the token also stands for unknown characters
        found: list[int] = []
        for token, (start, end) in zip(ids, encoding.offsets, strict=True):
            if token in (self.end_of_text_id, self.pad_id):
                for character in text[start:end]:
                    found += self._within(character)
            else:
                found.append(token)
        return found

    def _within(self, character: str) -> list[int]:
        """The tokens of a character within a word, without the two special ones."""
        alone, after = _ids(self._tokenizer, "x"), _ids(self._tokenizer, f"x{character}")
        ids = after[len(alone) :] if after[: len(alone)] == alone else []
        ids = ids or _ids(self._tokenizer, character)
        return [token for token in ids if token not in (self.end_of_text_id, self.pad_id)]

    def _special(self, names: tuple[str, ...]) -> int:
        for name in names:
            token = self._tokenizer.token_to_id(name)
            if token is not None:
                return token
        self.added.append(names[0])
        self._tokenizer.add_special_tokens([AddedToken(names[0], special=True)])
        token = self._tokenizer.token_to_id(names[0])
        assert token is not None
        return token

    def _named(self, end_of_text: str | int) -> int:
        if isinstance(end_of_text, int):
            return end_of_text
        token = self._tokenizer.token_to_id(end_of_text)
        if token is None:
            has = ", ".join(self.special_tokens) or "none"
            raise UsageError(
                f"the tokenizer has no token {end_of_text!r} (its special tokens: {shown(has)}).",
                "Name one of its tokens with --end-of-text.",
            )
        return token


class _Words(dict[str, tuple[int, ...]]):
    """Token ids of words, each of which the library encodes once: words are tokenized independently."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._encode(word))
        if len(word) <= WORD_LIMIT:
            if len(self) >= WORDS_LIMIT:
                self.clear()
            self[word] = ids
        return ids

    def encode(self, text: str) -> array[int]:
        """Token ids of a text; stretches with other characters than ASCII are left to the library."""
        pieces = [text] if text.isascii() else WORD_ENDS.split(text)
        words = (WORDS.findall(piece) if piece.isascii() else [piece] for piece in pieces)
        chain = itertools.chain.from_iterable
        return array("i", chain(map(self.__getitem__, chain(words))))


def _splits_words(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is a BPE of the words that `WORDS` finds, and of nothing else."""
    splitter, model = tokenizer.pre_tokenizer, tokenizer.model
    return (
        isinstance(splitter, pre_tokenizers.ByteLevel)
        and splitter.use_regex
        and not splitter.add_prefix_space
        and tokenizer.normalizer is None
        and isinstance(model, models.BPE)
        and not model.dropout
        and all(token.special for token in tokenizer.get_added_tokens_decoder().values())
    )


def cut(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """A text in pieces whose tokens, one after another, are those of the whole.

    It is cut where the pre-tokenizer gives the same words for both sides apart: words are tokenized
    independently. Raises ValueError where more than `UNCUT_LIMIT` characters have no such place.
    """
    start = 0
    while len(text) - start > PIECE:
        size = PIECE
        while (end := _seam(tokenizer, text[start : start + size])) is None:
            if size >= min(UNCUT_LIMIT, len(text) - start):
                break
            size *= 2
        if end is None:
            break
        yield text[start : start + end]
        start += end
    if len(text) - start > UNCUT_LIMIT:
        raise ValueError(
            f"more than {UNCUT_LIMIT:,} characters follow one another without a place between words"
        )
    yield text[start:]


def _seam(tokenizer: Tokenizer, window: str) -> int | None:
    """A place in the second half of a text where it can be cut, if there is one."""
    if tokenizer.pre_tokenizer is None:
        return None
    whole = _words(tokenizer, window)
    for kind in CUTS:
        places = [found.start() for found in kind.finditer(window, len(window) // 2)]
        for place in reversed([p for p in places if p < len(window) - SEAM][-TRIES:]):
            near = window[max(0, place - SEAM) : place], window[place : place + SEAM]
            if _ids(tokenizer, *near) != _ids(tokenizer, "".join(near)):
                continue  # a token that the tokenizer finds before it splits words may lie there
            if _words(tokenizer, window[:place], window[place:]) == whole:
                return place
    return None


def _words(tokenizer: Tokenizer, *texts: str) -> list[str]:
    """The words that texts are split into before each is tokenized."""
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    plain = texts if normalizer is None else map(normalizer.normalize_str, texts)
    return [word for text in plain for word, _ in splitter.pre_tokenize_str(text)]


def _ids(tokenizer: Tokenizer, *texts: str) -> list[int]:
    return [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False).ids]


def _keeps_all_text(tokenizer: Tokenizer) -> bool:
    """Whether every text comes back from its tokens: each byte has a token, and nothing is stripped."""
    if tokenizer.normalizer is not None or not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    return all(
        tokenizer.token_to_id(byte) is not None for byte in pre_tokenizers.ByteLevel.alphabet()
    ) and not any(token.lstrip or token.rstrip for token in added)


def _letters(text: str) -> Counter[str]:
    """The characters of a text, without white space, marks and differences of case."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return Counter(c for c in plain if not (c.isspace() or unicodedata.combining(c)))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE tokenizer; the same texts give the same tokenizer.

    Raises UsageError when `vocab_size` has no room for the 256 bytes and the two special tokens, and
    ValueError as `cut` does.
    """
    least = BYTES + 2
    if vocab_size < least:
        raise UsageError(
            f"a vocabulary of {vocab_size} is too small.", f"Give --vocab-size {least} or more."
        )
    tokenizer, splitter = Tokenizer(models.BPE()), Tokenizer(models.BPE())
    for one in (tokenizer, splitter):
        one.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT[0], PAD[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # the library locks the tokenizer that it trains, so that cutting needs another
    pieces = (piece for text in texts for piece in cut(splitter, text))
    tokenizer.train_from_iterator(pieces, trainer)
    return TextTokenizer(tokenizer)


def load_tokenizer(path: Path, end_of_text: str | int | None = None) -> TextTokenizer:
    """Read a Hugging Face `tokenizer.json`. Raises InputError for any other file.

    `end_of_text`: see TextTokenizer.
    """
    remedy = "Give the tokenizer.json of a Hugging Face tokenizer."
    data = read_file(path, remedy, limit=TOKENIZER_LIMIT)
    document = parse_record(data, dict[str, Any], path, remedy, what="a tokenizer")
    try:
        if (largest := max(_token_ids(document), default=0)) >= ID_LIMIT:
            raise ValueError(f"a token has the number {largest}")
        tokenizer = TextTokenizer(Tokenizer.from_str(decoded(data)), end_of_text)
        tokenizer.decode(tokenizer.encode(PROBE))  # some have no token for unknown characters
        return tokenizer
    except UsageError:
        raise
    except BaseException as error:
        # the library raises plain Exception; its panics are not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{path} is not a tokenizer ({reason(error)}).", remedy) from error


def tokenizer_of(artifact: TypedArtifact[Any]) -> TextTokenizer:
    """The tokenizer of an artifact, with the end-of-text token that ends documents in it."""
    return load_tokenizer(artifact.file(TOKENIZER), artifact.statistics.end_of_text_id)


def _token_ids(document: dict[str, Any]) -> Iterator[int]:
    """The ids of the tokens in a `tokenizer.json`, however damaged the rest of it is."""
    model, added = document.get("model"), document.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if isinstance(added, list):
        numbers += [token.get("id") for token in added if isinstance(token, dict)]
    yield from (number for number in numbers if isinstance(number, int))
