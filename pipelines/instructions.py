"""Instructions whose answers a rule can check: stories of the grammar of stories.py with what was asked for.

    python pipelines/instructions.py chats COUNT SEED > chats.jsonl        for `cola tokenize --chat`
    python pipelines/instructions.py prompts COUNT SEED > prompts.jsonl    questions, in the plain template
    python pipelines/instructions.py judge SAMPLES                         of `cola sample` of these

"Write a story about a brave sailor called Tom, who lives near the sea and loses a red ring." An answer
obeys if it ends by itself and mentions all that was asked for (name, nature, kind, place, colour, thing), and
no other of these.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grammars
import stories

# COUNT, SEED, whether they are for prompts, further arguments -> questions and answers
Exchanges = Callable[[int, int, bool, list[str]], Iterable[tuple[str, str]]]

SLOTS = {
    "name": [name for some in stories.NAMES.values() for name in some],
    "nature": stories.NATURES,
    "kind": stories.KINDS,
    "place": stories.PLACES,
    "colour": stories.COLOURS,
    "thing": stories.THINGS,
}
QUESTIONS = [
    "Write a story about {nature} {kind} called {name}, who lives {place} and loses a {colour} {thing}.",
    "Tell me about {name}, {nature} {kind} who lives {place}, and about a {colour} {thing}.",
    "A {colour} {thing} is lost. It belongs to {name}, {nature} {kind} who lives {place}. Tell the story.",
    "I would like to read of {nature} {kind} {place}. The name is {name}, and there is a {colour} {thing}.",
]


def exchange(source: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    slots: dict[str, str] = {}

    def pick(options: list[str]) -> str:
        for slot, known in SLOTS.items():
            if options[0] in known:
                return slots.setdefault(slot, source.choice(options))
        return source.choice(options)

    wordings = stories.parts(source.choice([*stories.NAMES]), pick)
    answer = stories.told(wordings, source, [4, 5])  # the wish names the colour
    return source.choice(QUESTIONS).format(**slots), answer


def mentioned(text: str) -> dict[str, set[str]]:
    """What a text says of each slot; a nature is one of a kind, not of a village."""
    after = {"nature": rf" (?:{'|'.join(stories.KINDS)})"}
    return {
        slot: {one for one in known if re.search(rf"\b{one}{after.get(slot, '')}\b", text)}
        for slot, known in SLOTS.items()
    }


def judge(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Shares of the answers in a samples artifact: obeyed, ended by themselves, right in each slot, and of
    their sentences that the grammar can write."""
    rule = stories.grammar()
    marks: dict[str, list[bool]] = {"obeyed": [], "ended": [], **{slot: [] for slot in SLOTS}}
    marks["sentences"] = []
    for row in rows:
        asked, said = mentioned(row["prompt"]), mentioned(row["text"])
        right = {slot: said[slot] == asked[slot] for slot in SLOTS} | {
            "ended": row["finish"] == "stop"
        }
        for name, mark in (right | {"obeyed": all(right.values())}).items():
            marks[name].append(mark)
        marks["sentences"] += [bool(rule.fullmatch(s)) for s in stories.sentences(row["text"])]
    return {name: sum(found) / max(1, len(found)) for name, found in marks.items()}


def drawn(count: int, seed: int, prompts: bool, more: list[str]) -> Iterator[tuple[str, str]]:
    """So many questions with their answers; other seeds are for prompts."""
    source = random.Random(seed)
    for _ in range(count):
        yield exchange(source)


def run(usage: str | None, exchanges: Exchanges, judge: grammars.Judge, more: int = 0) -> None:
    """Do what the command says: chats or prompts as JSON lines, or the marks of samples.

    more: how many further arguments there may be.
    """
    from cola_cli.corpus.chats import PLAIN, ChatTemplate, Message

    match sys.argv[1:]:
        case ["judge", samples]:
            grammars.tell(judge, samples)
        case ["chats" | "prompts" as what, count, seed, *others] if len(others) <= more:
            for question, answer in exchanges(int(count), int(seed), what == "prompts", others):
                if what == "chats":
                    print(json.dumps({"prompt": question, "response": answer}))
                else:
                    asked = ChatTemplate(PLAIN).render([Message("user", question)])
                    print(json.dumps({"prompt": asked}))
        case _:
            print(usage)


if __name__ == "__main__":
    run(__doc__, drawn, judge)
