"""Held-out passages: whole words, none twice, from the validation text alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cola_cli.artifacts.kinds import Tokens
from cola_cli.corpus.sequences import Sequences, split_documents
from cola_cli.corpus.tokenizer import load_tokenizer
from cola_cli.errors import InputError
from cola_cli.evaluation.cloze import cloze_items, cloze_lines
from cola_cli.evaluation.tasks import built_in_template, read_questions
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.tokenize import tokenize

STORY = (
    "The old boat lay on the sand. Anna went to the boat again. It was far too big, and so she left it."
    " Then home!"
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cloze")
    stories = [STORY.replace("Anna", f"Anna{number}") for number in range(40)]
    (folder / "corpus.txt").write_text("\n\n".join(stories))
    cut = TokenizeSettings(vocab_size=280, seq_len=32, validation_fraction=0.3, workers=1)
    tokenize([str(folder / "corpus.txt")], folder / "tokens", cut)
    return folder / "tokens"


def test_passages_begin_at_a_word_and_end_before_the_last_word_of_a_sentence() -> None:
    assert cloze_items(STORY, 20) == [
        {"prompt": "boat lay on the", "text": "boat lay on the", "answer": "sand"},
        {"prompt": "went to the boat", "text": "went to the boat", "answer": "again"},
        {"prompt": "she left it. Then", "text": "she left it. Then", "answer": "home"},
    ]
    # "it." is too short to be asked for, and before "sand" there is too little
    assert [item["answer"] for item in cloze_items(STORY, 45)] == ["again", "home"]
    assert cloze_items(STORY, 200) == []


def test_passages_follow_one_another_and_answers_follow_them() -> None:
    at = 0
    for item in cloze_items(STORY * 3, 10):
        found = STORY * 3
        at = found.index(item["text"], at) + len(item["text"])
        assert found[at + 1 :].startswith(item["answer"])


def test_the_file_is_task_data_and_prompts_out_of_the_validation_split(
    tokens: Path, tmp_path: Path
) -> None:
    source = Tokens.open(tokens)
    lines = cloze_lines(source, 7, 30)
    rows = [json.loads(line) for line in lines.decode().splitlines()]
    assert len(rows) == 7
    tokenizer = load_tokenizer(source.file("tokenizer.json"))
    held_out = [
        tokenizer.decode(ids)
        for ids in split_documents(Sequences(source, "validation"), tokenizer.end_of_text_id)
    ]
    for row in rows:
        assert any(f"{row['text']} {row['answer']}" in text for text in held_out)
        assert row["prompt"] == row["text"]
    (tmp_path / "cloze.jsonl").write_bytes(lines)
    questions = read_questions(tmp_path / "cloze.jsonl", built_in_template("lambada"))
    assert [question.ground_truth for question in questions] == [row["answer"] for row in rows]
    assert len(cloze_lines(source, 10_000, 30).splitlines()) < 10_000
    assert cloze_lines(source, 7, 30) == lines


def test_without_long_enough_text_it_says_what_to_change(tokens: Path) -> None:
    with pytest.raises(InputError, match="Ask for a shorter context"):
        cloze_lines(Tokens.open(tokens), 5, 5000)
