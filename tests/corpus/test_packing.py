"""Packing loses and repeats no token; splits and tokenizers are functions of the text."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cola_cli.corpus.packing import document_digest, is_validation, pack, separated, write_rows
from cola_cli.corpus.sequences import rows_of
from cola_cli.corpus.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from cola_cli.errors import InputError, UsageError

SENTENCES = [f"The {n} grey cats of Ärzte street sat on mat number {n * n}." for n in range(50)]


@given(st.lists(st.lists(st.integers(2, 99), max_size=40), max_size=12), st.integers(1, 16))
def test_packing_loses_and_repeats_no_token(documents: list[list[int]], seq_len: int) -> None:
    rows = list(pack(enumerate(documents), seq_len, end_of_text=0))
    joined = [token for document in documents for token in (*document, 0)]
    assert [token for row in rows for token in row.tokens] == joined
    assert all(len(row.tokens) == seq_len for row in rows[:-1])
    for row in rows:
        at = 0
        for document, offset, length in row.segments:
            whole = [*documents[document], 0]
            assert row.tokens[at : at + length] == whole[offset : offset + length]
            at += length
        assert at == len(row.tokens)


@given(
    st.lists(st.lists(st.integers(2, 99), max_size=40), min_size=1, max_size=12),
    st.integers(1, 20),
    st.integers(1, 6),
)
def test_documents_apart_begin_at_multiples_and_are_told_from_each_other_and_from_padding(
    documents: list[list[int]], seq_len: int, step: int
) -> None:
    alone = (row for one in enumerate(documents) for row in pack([one], seq_len, end_of_text=0))
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        made = separated(alone, seq_len, step)
        count, tokens = write_rows(path, made, seq_len, pad_id=1, chat=False, apart=True)
        table = pq.read_table(path)
    rows, whole = rows_of(table, 0), [[*document, 0] for document in documents]
    assert (len(rows), tokens) == (count, sum(map(len, whole)))
    assert rows.pieces is not None
    found: list[list[int]] = [[] for _ in documents]
    for row, segments in enumerate(table["segments"].to_pylist()):
        assert rows.pieces[row, 0] == 1
        for number, piece in enumerate(segments, 1):
            start, stop = piece["start"], piece["start"] + piece["length"]
            assert start % step == 0
            assert set(rows.pieces[row, start:stop]) == {number}
            after = segments[number]["start"] if number < len(segments) else seq_len
            assert set(rows.pieces[row, stop:after]) <= {-number}
            assert set(rows.tokens[row, stop:after]) <= {1}
            # cut only where it is longer than a sequence
            assert piece["offset"] % seq_len == 0
            found[piece["document"]] += rows.tokens[row, start:stop].tolist()
        assert rows.lengths[row] == stop
    assert found == whole
    assert rows.is_text.sum() == tokens


def test_the_split_depends_on_the_document_and_seed_alone_and_has_the_share_asked_for() -> None:
    digests = [document_digest(str(number)) for number in range(20_000)]
    chosen = [is_validation(digest, 0.1, 0) for digest in digests]
    assert abs(sum(chosen) / 20_000 - 0.1) < 0.01
    assert chosen == [is_validation(digest, 0.1, 0) for digest in digests]
    assert chosen != [is_validation(digest, 0.1, 1) for digest in digests]


def test_the_same_texts_train_the_same_tokenizer_and_text_survives_it() -> None:
    first, second = (train_tokenizer(SENTENCES, 400) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    text = "Ünseen — tëxt: 漢字 🙂\n\ttoo"
    assert first.decode(first.encode(text)) == text


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path) -> None:
    made = train_tokenizer(SENTENCES, 400)
    (tmp_path / "tokenizer.json").write_bytes(made.to_bytes())
    for tokenizer in (made, load_tokenizer(tmp_path / "tokenizer.json")):
        ids = tokenizer.encode("a <|endoftext|> b")
        assert tokenizer.end_of_text_id not in ids
        assert tokenizer.decode(ids) == "a <|endoftext|> b"


def test_a_foreign_tokenizer_gets_the_special_tokens_it_lacks(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    foreign = Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    foreign.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    foreign.add_special_tokens(["</s>"])
    foreign.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert (loaded.end_of_text_id, loaded.pad_id, loaded.vocab_size) == (2, 3, 4)
    (tmp_path / "again.json").write_bytes(loaded.to_bytes())
    again = load_tokenizer(tmp_path / "again.json")
    assert (again.end_of_text_id, again.pad_id, again.vocab_size) == (2, 3, 4)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "not json", '{"model": {"type": "Magic"}}', "[" * 9999]
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(path)


def test_a_tokenizer_that_panics_is_refused(tmp_path: Path) -> None:
    """The library's panics are no exceptions."""
    path = tmp_path / "tokenizer.json"
    document = json.loads(train_tokenizer(SENTENCES, 300).to_bytes())
    document["model"]["continuing_subword_prefix"] = "../x"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(path)


LONG = """
from cola_cli.corpus.tokenizer import PIECE, train_tokenizer
text = "the cat sat on the mat " * (3 * PIECE // 23)
made = train_tokenizer([text], 300)
assert len(made.encode("the cat")) < 4
"""


def test_a_tokenizer_is_trained_on_a_text_of_several_pieces() -> None:
    # in a process of its own: the library waits for itself without end when asked while it trains
    subprocess.run([sys.executable, "-c", LONG], check=True, timeout=600)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match="vocabulary of 100 is too small"):
        train_tokenizer(SENTENCES, 100)


def word_marking() -> dict[str, Tokenizer]:
    """Tokenizers that mark the begin of a word, or the inside of one, and whose decoders join words."""
    texts = ["Mia walked to the old market at noon."] * 40
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>", "</s>"]),
    )
    mistral = Tokenizer(models.BPE(unk_token="<unk>"))
    mistral.pre_tokenizer, mistral.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    mistral.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "<s>", "</s>"])
    )
    bert = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    bert.normalizer, bert.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    bert.decoder = decoders.WordPiece()
    bert.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]", "[PAD]", "[EOS]"])
    )
    return {"t5": unigram, "mistral": mistral, "bert": bert}


@pytest.mark.parametrize("name", ["t5", "mistral", "bert"])
def test_prompt_and_continuation_are_the_whole_text(name: str) -> None:
    tokenizer = TextTokenizer(word_marking()[name])
    ids = tokenizer.encode("Mia walked to the old market at noon.")
    whole = tokenizer.decode(ids)
    assert " market" in whole
    for cut in range(1, len(ids)):
        assert tokenizer.decode(ids[:cut]) + tokenizer.continuation(ids[:cut], ids[cut:]) == whole


@pytest.mark.parametrize("name", ["t5", "mistral", "bert"])
def test_characters_that_a_tokenizer_lacks_are_counted(name: str) -> None:
    tokenizer = TextTokenizer(word_marking()[name])
    for text, lost in (("Mia walked to the market.", 0), ("Mia 世界 walked", 2), ("你好", 2)):
        assert tokenizer.lost(text, tokenizer.encode(text)) == lost
