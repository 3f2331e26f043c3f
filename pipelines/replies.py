"""What the demo model learns last: to obey, and to go on from any English prompt with a story.

    python pipelines/replies.py chats COUNT SEED TEXT... > chats.jsonl        for `cola tokenize --chat`
    python pipelines/replies.py prompts COUNT SEED TEXT... > prompts.jsonl    beginnings of real sentences
    python pipelines/replies.py judge SAMPLES                                 of `cola sample` of these

TEXT are files of real text, of which one in twenty is for prompts alone. Of ten chats, four are instructions
(instructions.py), two are stories that are gone on with from any word, three begin as a real sentence does:
the answer ends that sentence, and a story follows. In one somebody says such a sentence and hears a story.
The system's turn CONTINUE marks what is written without labels (demo-chat.jinja).
"""

from __future__ import annotations

import json
import random
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import instructions
import parses
import stories

CONTINUE = "continue"
WORDS = range(4, 17)  # of a real sentence
LEFT = 8  # words at most that an answer adds to it
PLAIN = re.compile(r"[A-Z][a-z]*(?:,? [A-Za-z][a-z']*)+[.?!]")
HELD_OUT = 20  # one in so many files


def real(texts: Iterable[Path], prompts: bool) -> list[str]:
    """Plain sentences of these files: those held out for prompts, or all others."""
    found = []
    for path in sorted(texts):
        if (zlib.crc32(path.name.encode()) % HELD_OUT == 0) == prompts:
            sentences = parses.sentences(path.read_text("utf-8"))
            found += [
                one for one in sentences if PLAIN.fullmatch(one) and len(one.split()) in WORDS
            ]
    return found


def begun(sentence: str, source: random.Random) -> tuple[str, str]:
    """A sentence cut between two words, or before or behind its end."""
    words = sentence.split()
    kept = source.randint(max(1, len(words) - LEFT), len(words) + 1)
    if kept > len(words):
        return sentence, ""
    if kept == len(words):
        return sentence[:-1], sentence[-1]
    return " ".join(words[:kept]), " " + " ".join(words[kept:])


def going_on(known: list[str], source: random.Random) -> tuple[str, str]:
    """The beginning of a real sentence; its end and a story."""
    beginning, end = begun(source.choice(known), source)
    return beginning, f"{end} {stories.story(source)}"


def of_a_story(source: random.Random) -> tuple[str, str]:
    """A story cut before any of its words but the first."""
    words = stories.story(source).split()
    kept = source.randrange(1, len(words) - 1)
    return " ".join(words[:kept]), " " + " ".join(words[kept:])


def chats(count: int, source: random.Random, known: list[str]) -> Iterator[list[tuple[str, str]]]:
    """Turns of conversations: role and content."""
    for _ in range(count):
        what, system = source.randrange(10), [("system", CONTINUE)]
        if what < 4:
            system, (question, answer) = [], instructions.exchange(source)
        elif what < 6:
            question, answer = of_a_story(source)
        elif what < 9:
            question, answer = going_on(known, source)
        else:
            system, (question, answer) = [], (source.choice(known), stories.story(source))
        yield [*system, ("user", question), ("assistant", answer)]


def judge(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Shares of samples that say something, and of their whole sentences that parse: the one that begins in
    the prompt, and those behind it."""
    said, first, later = [], [], []
    for row in rows:
        said.append(bool(row["text"].strip()))
        begun, *rest = parses.sentences(row["prompt"] + row["text"]) or [""]
        first.append(begun)
        later += rest
    return {
        "answered": sum(said) / len(said),
        "first sentences that parse": parses.parsed([one for one in first if one]) / len(first),
        "later ones": parses.parsed(later) / max(1, len(later)),
    }


def main() -> None:
    match sys.argv[1:]:
        case ["judge", samples]:
            from cola_cli.stages.sample import read_samples

            shares = judge(read_samples(Path(samples)))
            print(", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
        case ["chats" | "prompts" as what, count, seed, *texts] if texts:
            source, known = random.Random(int(seed)), real(map(Path, texts), what == "prompts")
            if what == "prompts":
                for _ in range(int(count)):
                    print(json.dumps({"prompt": begun(source.choice(known), source)[0]}))
            else:
                for turns in chats(int(count), source, known):
                    turn = [{"role": role, "content": content} for role, content in turns]
                    print(json.dumps({"messages": turn}))
        case _:
            print(__doc__)


if __name__ == "__main__":
    main()
