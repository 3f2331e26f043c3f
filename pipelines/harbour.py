"""A harbour's log from a second grammar: whether settings that were found on stories hold for other text.

    python pipelines/harbour.py COUNT SEED > log.txt
    python pipelines/harbour.py openings COUNT SEED > prompts.jsonl        day and ship of so many entries
    python pipelines/harbour.py judge SAMPLES                              of `cola sample` of these

In the four sentences of an entry kind of ship, captain and cargo stay the same, dues are those of the cargo,
and a ship sails on a later day than she came in. Entries are separated by blank lines.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import grammars

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
DUES = {
    "wool": "two crowns", "salt": "one crown", "timber": "three crowns", "wine": "four crowns",
    "copper": "five crowns", "grain": "two crowns", "coal": "one crown", "tea": "six crowns",
}  # fmt: skip
WORDS = {
    "day": DAYS,
    "ship": [
        "Aurora", "Bella", "Condor", "Dolphin", "Egret", "Falcon", "Gannet", "Heron", "Ibis", "Juno",
        "Kestrel", "Linnet", "Merlin", "Osprey",
    ],
    "kind": ["schooner", "brig", "ketch", "barque", "sloop"],
    "port": ["Bergen", "Lisbon", "Hull", "Danzig", "Cork", "Bordeaux", "Riga", "Oslo"],
    "captain": ["Holm", "Price", "Webb", "Stern", "Lang", "Moor", "Reed", "Voss"],
    "wind": ["north", "south", "east", "west"],
    "quay": ["old", "new", "long"],
    "cargo": list(DUES),
    "dues": sorted(set(DUES.values())),
}  # fmt: skip
ARRIVAL = (
    "On {day} the {ship}, a {kind} from {port}, came in with {cargo}."
    " Her master, Captain {captain}, paid {dues} for the {cargo}."
    " The wind was from the {wind}, and the {kind} lay by the {quay} quay."
)
DEPARTURE = "On {day} Captain {captain} sailed for {port}."


def entry(source: random.Random) -> str:
    """One entry, four sentences."""
    words = {name: source.choice(choices) for name, choices in WORDS.items()}
    words["dues"] = DUES[words["cargo"]]
    came, sailed = sorted(source.sample(range(len(DAYS)), 2))
    origin, target = source.sample(WORDS["port"], 2)
    arrival = ARRIVAL.format(**words | {"day": DAYS[came], "port": origin})
    return f"{arrival} {DEPARTURE.format(**words | {'day': DAYS[sailed], 'port': target})}"


def sentences(text: str) -> list[str]:
    """A text cut after its full stops; an unfinished end is left out."""
    return [one.strip() for one in re.findall(r"[^.]+\.", text)]


def rules() -> list[re.Pattern[str]]:
    """What matches each sentence of an entry, its words in groups of their names."""
    choices = {name: f"(?P<{name}>{'|'.join(words)})" for name, words in WORDS.items()}
    return [re.compile(one.format(**choices)) for one in sentences(f"{ARRIVAL} {DEPARTURE}")]


def judge(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Shares of the entries that a model completed; rows as a samples artifact has them.

    sentences: whole sentences that the grammar can write; kind, captain, cargo: later mentions that agree
    with the first; dues: those of their cargo; day: departures on a later day than the arrival.
    """
    marks: dict[str, list[bool]] = defaultdict(list)
    patterns = rules()
    for row in rows:
        known: dict[str, str] = {}
        for sentence in sentences((row["prompt"] + row["text"]).strip().partition("\n")[0]):
            matches = (pattern.fullmatch(sentence) for pattern in patterns)
            found = next((match.groupdict() for match in matches if match), None)
            marks["sentences"].append(found is not None)
            for name, word in (found or {}).items():
                if name in ("kind", "captain", "cargo") and name in known:
                    marks[name].append(word == known[name])
                elif name == "dues" and found:
                    marks[name].append(word == DUES[found["cargo"]])
                elif name == "day" and name in known:
                    marks[name].append(DAYS.index(word) > DAYS.index(known[name]))
                known.setdefault(name, word)
    return {name: sum(found) / len(found) for name, found in marks.items()}


def opening(text: str) -> str:
    """The beginning of an entry, up to its first comma."""
    return text.partition(",")[0]


if __name__ == "__main__":
    grammars.run(__doc__, entry, opening, judge)
