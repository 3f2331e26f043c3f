"""Held-out passages whose last word is asked for, made from the validation text of a corpus.

Made like LAMBADA, but nobody checked that the word can be guessed from its passage. The share of words that
are guessed compares models on one corpus; it cannot be compared with published accuracies.
"""

from __future__ import annotations

import json
import re

from cola_cli.artifacts.kinds import Tokens
from cola_cli.corpus.sequences import Sequences, split_documents
from cola_cli.corpus.tokenizer import tokenizer_of
from cola_cli.errors import InputError

# the last word of a sentence: at least four letters, so that few are articles and prepositions
LAST_WORD = re.compile(r"(?<=\s)([^\W\d_]{4,})[.!?](?=\s|$)")


def cloze_lines(tokens: Tokens, count: int, context: int) -> bytes:
    """`count` passages of about `context` characters as JSONL, or as many as there are.

    Each has `text` (also as `prompt`) and the `answer` that follows it. They are spread evenly over the
    validation split and do not overlap. Raises InputError without any.
    """
    tokenizer = tokenizer_of(tokens)
    found: list[dict[str, str]] = []
    for ids in split_documents(Sequences(tokens, "validation"), tokenizer.end_of_text_id):
        found += cloze_items(tokenizer.decode(ids), context)
    if not found:
        raise InputError(
            f"the validation text of {tokens.path} has no sentence that ends after {context} characters.",
            "Ask for a shorter context, or tokenize with another --validation-fraction.",
        )
    wanted = min(count, len(found))
    chosen = [found[place * len(found) // wanted] for place in range(wanted)]
    rows = ({"id": number} | item for number, item in enumerate(chosen))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def cloze_items(document: str, context: int) -> list[dict[str, str]]:
    """The passages of one document, from its start on, each beginning at a word."""
    items = []
    begin = 0  # where the next passage may begin
    for match in LAST_WORD.finditer(document):
        cut = match.start() - context
        if cut < begin:
            continue
        space = document.find(" ", cut, match.start()) if cut else -1
        text = document[space + 1 : match.start()].strip()
        if text:
            items.append({"prompt": text, "text": text, "answer": match.group(1)})
            begin = match.end()
    return items
