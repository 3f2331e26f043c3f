"""Words that are remembered give the ids that the library gives for the whole text."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from cola_cli.corpus import tokenizer as module
from cola_cli.corpus.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
REAL = [
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("*.md"),
    *ROOT.glob("data/eval/*.jsonl"),
    Path(__file__),
]
# letters, digits and spaces of more than ASCII, marks, quotes, what joins and what is not seen
STRANGE = "\u3000\u0085\u00a0\u200b\u00e9\u0301\u00b2\u0663\u2019\u65e5\ufb01\U0001f600\u2028\u1680"
PIECES = st.one_of(
    st.sampled_from(
        ["'s", "'ll", "'LL", " the", "don't", "  ", "\n\n", "<|endoftext|>", "12a", " \t "]
    ),
    st.sampled_from([chr(code) for code in range(128)]),
    st.sampled_from(STRANGE),
    st.text(max_size=3),
)


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    """A tokenizer of this project's own texts."""
    return train_tokenizer([path.read_text() for path in REAL[:8]], 1000)


def library(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The ids of a text by the library's own call for many."""
    (encoding,) = tokenizer._tokenizer.encode_batch([text], add_special_tokens=False)
    return list(encoding.ids)


@given(pieces=st.lists(PIECES, max_size=30))
def test_any_text_has_the_ids_of_the_library(trained: TextTokenizer, pieces: list[str]) -> None:
    assert trained._known is not None
    text = "".join(pieces)
    (found,) = trained.encode_documents([text])
    assert list(found) == library(trained, text)


@pytest.mark.parametrize("name", ["trained", "demo"])
def test_real_text_has_the_ids_of_the_library(trained: TextTokenizer, name: str) -> None:
    demo = load_tokenizer(ROOT / "cola_cli/demo/tokenizer.json")
    tokenizer = {"trained": trained, "demo": demo}[name]
    texts = [line for path in REAL for line in path.read_text().split("\n\n")]
    assert sum(map(len, texts)) > 100_000
    for text, found in zip(texts, tokenizer.encode_documents(texts), strict=True):
        assert list(found) == library(tokenizer, text)


def test_only_so_many_words_are_remembered_and_no_long_ones(
    trained: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WORDS_LIMIT", 50)
    source, known = random.Random(0), module._Words(trained.encode)
    for number in range(300):
        text = f"word{number} {'x' * source.randint(1, 99)} y" + "z" * number
        assert list(known.encode(text)) == library(trained, text)
        assert len(known) <= 50
    assert max(map(len, known)) <= module.WORD_LIMIT


def prefixed(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def split_otherwise(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )


def normalized(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def with_a_name(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("the cat", special=False)])


def with_dropout(tokenizer: Tokenizer) -> None:
    tokenizer.model.dropout = 0.5


CHANGES = [prefixed, split_otherwise, normalized, with_a_name, with_dropout]


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_of_another_make_is_left_to_the_library(
    trained: TextTokenizer, change: Callable[[Tokenizer], None]
) -> None:
    raw = Tokenizer.from_str(trained.to_bytes().decode())
    change(raw)
    assert TextTokenizer(raw)._known is None


def test_a_tokenizer_of_whole_words_is_left_to_the_library() -> None:
    raw = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    assert TextTokenizer(raw)._known is None
