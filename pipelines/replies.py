"""What the demo model learns last: to obey, and to go on from any English prompt with a story.

    python pipelines/replies.py chats COUNT SEED TEXT... > chats.jsonl        for `cola tokenize --chat`
    python pipelines/replies.py prompts COUNT SEED TEXT... > prompts.jsonl    beginnings of real sentences
    python pipelines/replies.py judge SAMPLES                                 of `cola sample` of these

TEXT are files or patterns of real text, of which one in twenty is for prompts alone. Of ten chats, four are
instructions (instructions.py), two are stories that are gone on with from any word, three begin as a real
sentence does: the answer breaks it off with a dash, and a story follows. In one somebody says such a
sentence and hears a story. The system's turn CONTINUE marks what is written without labels (demo-chat.jinja).
"""

from __future__ import annotations

import glob
import json
import random
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grammars
import instructions
import parses
import stories

CONTINUE = "continue"
WORDS = range(1, 25)  # of a real sentence
BROKEN_OFF = " -"  # what stands between the beginning of a sentence and a story
HELD_OUT = 20  # one in so many files


def real(texts: Iterable[str], prompts: bool) -> list[str]:
    """Sentences of the files that are held out for prompts, or of all others; of all if they are too few."""
    files = sorted(Path(one) for text in texts for one in glob.glob(text))
    chosen = [one for one in files if (zlib.crc32(one.name.encode()) % HELD_OUT == 0) == prompts]
    found = [one for path in chosen or files for one in parses.sentences(path.read_text("utf-8"))]
    return [one for one in found if len(one.split()) in WORDS]


def begun(sentence: str, source: random.Random) -> str:
    """A sentence, in two cases of three cut behind any of its words."""
    if source.randrange(3) == 0:
        return sentence
    words = sentence.split()
    return " ".join(words[: source.randint(1, len(words))])


def going_on(known: list[str], source: random.Random) -> tuple[str, str]:
    """The beginning of a real sentence, or all of it, and a story."""
    beginning = begun(source.choice(known), source)
    between = "" if beginning.endswith(parses.ENDS) else BROKEN_OFF
    return beginning, f"{between} {stories.story(source)}"


def of_a_story(source: random.Random) -> tuple[str, str]:
    """A story cut before any of its words but the first."""
    words = stories.story(source).split()
    kept = source.randrange(1, len(words) - 1)
    return " ".join(words[:kept]), " " + " ".join(words[kept:])


def chats(count: int, source: random.Random, known: list[str]) -> Iterator[list[dict[str, str]]]:
    """The messages of conversations."""
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
        turns = [*system, ("user", question), ("assistant", answer)]
        yield [{"role": role, "content": content} for role, content in turns]


def judge(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Shares of answers: not empty, ended by themselves, a story at once or behind a dash; and of their
    sentences those that the grammar of stories.py can write, and that parse."""
    rule = stories.grammar()
    marks: dict[str, list[bool]] = {"answered": [], "ended": [], "stories": [], "sentences": []}
    written = []
    for row in rows:
        text = row["text"].removeprefix(BROKEN_OFF).strip()
        found = stories.sentences(text)
        right = [bool(rule.fullmatch(one)) for one in found]
        marks["answered"].append(bool(text))
        marks["ended"].append(row["finish"] == "stop")
        marks["stories"].append(bool(text) and all(right))
        marks["sentences"] += right
        written += found if text else []
    return {name: sum(found) / max(1, len(found)) for name, found in marks.items()} | {
        "parse": parses.parsed(written) / max(1, len(written))
    }


def main() -> None:
    match sys.argv[1:]:
        case ["judge", samples]:
            grammars.tell(judge, samples)
        case ["chats" | "prompts" as what, count, seed, *texts] if texts:
            source, known = random.Random(int(seed)), real(texts, what == "prompts")
            if what == "prompts":
                for _ in range(int(count)):
                    print(json.dumps({"prompt": begun(source.choice(known), source)}))
            else:
                for messages in chats(int(count), source, known):
                    print(json.dumps({"messages": messages}))
        case _:
            print(__doc__)


if __name__ == "__main__":
    main()
