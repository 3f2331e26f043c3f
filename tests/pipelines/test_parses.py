"""pipelines/parses.py: which sentences of a text are asked about, and what link-grammar says of them."""

from __future__ import annotations

import shutil

import pytest

from pipelines.parses import COMMAND, parsed, sentences, written


def test_sentences_are_whole_and_begin_behind_the_prompt() -> None:
    assert sentences('He said "No." Then\nhe left! And so') == ['He said "No.', "Then he left!"]
    rows = [
        {"prompt": "The dog", "text": " ran. It was late. It was"},
        {"prompt": "The dog ran.", "text": " It was late."},
    ]
    assert list(written(rows)) == ["It was late."] * 2


@pytest.mark.skipif(shutil.which(COMMAND[0]) is None, reason="needs link-parser")
def test_grammatical_sentences_are_counted() -> None:
    good = [
        "The people of the city were happy.",
        "In the beginning God created the heavens and the earth.",
    ]
    assert parsed([*good, "The of was people not the the.", "!help of not are was."]) == 2
