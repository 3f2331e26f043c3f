"""Byte-level BPE tokenizers: trained here, or any Hugging Face `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from cola_cli.artifacts.reading import parse_json, read_regular, reason
from cola_cli.errors import InputError, UsageError

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eot_id|>")
PAD = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>")
TOKENIZER_LIMIT = 512 << 20  # bytes
ID_LIMIT = 1 << 24  # of a token: the library takes memory for every number up to the largest
BYTES = 256
PROBE = "An Ünknown wörd, 日本 \x00\ue000"


class TextTokenizer:
    """A tokenizer with its end-of-text and pad tokens, found or added.

    Text that spells a special token is encoded as plain text, so a corpus cannot end a document.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.end_of_text_id = self._special(END_OF_TEXT)
        self.pad_id = self._special(PAD)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of several texts."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids beyond the vocabulary are passed over."""
        known = [token for token in ids if token < self.vocab_size]
        return self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens)

    def to_bytes(self) -> bytes:
        """The content of `tokenizer.json`."""
        return self._tokenizer.to_str(pretty=True).encode()

    def _special(self, names: tuple[str, ...]) -> int:
        for name in names:
            token = self._tokenizer.token_to_id(name)
            if token is not None:
                return token
        self._tokenizer.add_special_tokens([AddedToken(names[0], special=True)])
        token = self._tokenizer.token_to_id(names[0])
        assert token is not None
        return token


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE tokenizer; the same texts give the same tokenizer.

    Raises UsageError when `vocab_size` has no room for the 256 bytes and the two special tokens.
    """
    least = BYTES + 2
    if vocab_size < least:
        raise UsageError(
            f"a vocabulary of {vocab_size} is too small.", f"Give --vocab-size {least} or more."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT[0], PAD[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer)


def load_tokenizer(path: Path) -> TextTokenizer:
    """Read a Hugging Face `tokenizer.json`. Raises InputError when it is none."""
    remedy = "Give the tokenizer.json of a Hugging Face tokenizer."
    try:
        text = read_regular(path, TOKENIZER_LIMIT).decode()
        document = parse_json(text)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        if (largest := max(_ids(document), default=0)) >= ID_LIMIT:
            raise ValueError(f"a token has the number {largest}")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}).", remedy) from error
    except ValueError as error:
        raise InputError(f"{path} is not a tokenizer ({reason(error)}).", remedy) from error
    try:
        tokenizer = TextTokenizer(Tokenizer.from_str(text))
        tokenizer.decode(tokenizer.encode(PROBE))  # some have no token for what they do not know
        return tokenizer
    except BaseException as error:  # the library raises plain Exception; its panics are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{path} is not a tokenizer ({reason(error)}).", remedy) from error


def _ids(document: dict[str, Any]) -> Iterator[int]:
    """The numbers of the tokens in a `tokenizer.json`, whatever else is wrong with it."""
    model, added = document.get("model"), document.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if isinstance(added, list):
        numbers += [token.get("id") for token in added if isinstance(token, dict)]
    yield from (number for number in numbers if isinstance(number, int))
