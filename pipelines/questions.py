"""Questions on sentences of a real text, whose answers a rule knows: who spoke to whom, who is whose son.

    python pipelines/questions.py chats COUNT SEED [FOLDER] > chats.jsonl        for `cola tokenize --chat`
    python pipelines/questions.py prompts COUNT SEED [FOLDER] > prompts.jsonl    of other sentences
    python pipelines/questions.py judge SAMPLES                                  of `cola sample` of these

FOLDER holds texts, by default the Bible of bible.sh. "Moses spoke to Aaron, ... Who was spoken to?" is
answered by "Aaron": one of two names, so that half is right by chance. A tenth of the sentences, chosen by
their text alone, is for prompts.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import instructions

ROOT = Path(__file__).parents[1]
LONGEST = 240  # characters of a sentence
NAME = r"(?!He\b|She\b|They\b|You\b|It\b|We\b|Who\b|The\b|This\b|I\b)[A-Z][a-z]+"
# what is said of two names, and what may be asked of the first and of the second
RELATIONS = {
    rf"\b({NAME}) (?:said|spoke|answered) to ({NAME})\b": ("Who spoke?", "Who was spoken to?"),
    rf"\b({NAME}),? (?:the )?son of ({NAME})\b": ("Who is the son?", "Who is the father?"),
    rf"\b({NAME}) became the father of ({NAME})\b": ("Who became a father?", "Who was the child?"),
}  # fmt: skip
ASKED = re.compile(r"^(?P<sentence>.+) (?P<question>Who[^.?]+\?)$", re.M)


def answers(sentence: str) -> dict[str, str]:
    """Questions on a sentence and their answers; none where it says one thing of several."""
    found: dict[str, str] = {}
    for relation, questions in RELATIONS.items():
        said = re.findall(relation, sentence)
        if len(said) == 1 and said[0][0] != said[0][1]:
            found |= zip(questions, said[0], strict=True)
    return found


def exchanges(folder: Path, held_out: bool) -> Iterator[tuple[str, str]]:
    """All questions on the texts in a folder, with their answers: on held-out sentences, or on the others."""
    for file in sorted(folder.glob("*.txt")):
        for sentence in re.split(r"(?<=[.?!”])\s+", file.read_text()):
            sentence = " ".join(sentence.split())
            chosen = hashlib.sha256(sentence.encode()).digest()[0] < 26
            if len(sentence) <= LONGEST and chosen == held_out:
                yield from (
                    (f"{sentence} {asked}", name) for asked, name in answers(sentence).items()
                )


def judge(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Shares of the answers in a samples artifact: right, ended by themselves, one of the two names."""
    marks: dict[str, list[bool]] = {"right": [], "ended": [], "named": []}
    for row in rows:
        asked = ASKED.search(row["prompt"])
        known = answers(asked["sentence"]) if asked else {}
        said, ended = row["text"].strip(), row["finish"] == "stop"
        marks["right"].append(bool(asked) and ended and said == known.get(asked["question"]))
        marks["ended"].append(ended)
        marks["named"].append(said in known.values())
    return {name: sum(found) / max(1, len(found)) for name, found in marks.items()}


def drawn(count: int, seed: int, prompts: bool, more: list[str]) -> list[tuple[str, str]]:
    """At most so many questions with their answers, in an order of the seed; more: the folder."""
    folder = Path(more[0]) if more else ROOT / "downloads" / "bible"
    found = [*dict.fromkeys(exchanges(folder, prompts))]
    random.Random(seed).shuffle(found)
    return found[:count]


if __name__ == "__main__":
    instructions.run(__doc__, drawn, judge, more=1)
