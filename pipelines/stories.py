"""Little stories from a grammar: text so regular that a small model learns to write it sensibly.

    python pipelines/stories.py COUNT SEED > stories.txt
    python pipelines/stories.py check < text            the share of sentences that the grammar can write
    python pipelines/stories.py openings COUNT SEED > prompts.jsonl         the first words of so many stories
    python pipelines/stories.py judge SAMPLES           of `cola sample` of these: sentences, whole stories,
                                                        names and things that stay the same

A story has a hero, a friend, a thing and a place that stay the same throughout, so that what a model
continues can be held against what went before. Stories are separated by blank lines.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

OPENING = 13  # words of a story that a model is given
NAMES = {
    "she": ["Anna", "Clara", "Emma", "Greta", "Ida", "Lucy", "Mary", "Nora", "Rosa", "Sara"],
    "he": ["Adam", "Ben", "David", "Felix", "Henry", "Jack", "Leo", "Max", "Oscar", "Tom"],
}
FORMS = {"she": ("her", "her"), "he": ("him", "his")}  # object, possessive
KINDS = ["girl", "child", "baker", "farmer", "teacher", "painter", "sailor", "doctor"]
FRIENDS = ["dog", "cat", "horse", "mother", "father", "sister", "brother", "neighbour", "uncle"]
NATURES = [
    "a little",
    "an old",
    "a kind",
    "a clever",
    "a brave",
    "a quiet",
    "a happy",
    "a lonely",
    "a tall",
    "a poor",
]
COLOURS = ["red", "blue", "green", "golden", "white", "black", "silver", "yellow"]
THINGS = [
    "ball",
    "book",
    "boat",
    "hat",
    "key",
    "lamp",
    "coat",
    "basket",
    "box",
    "ring",
    "cup",
    "bell",
]
PLACES = [
    "in a small house",
    "in a big city",
    "near the sea",
    "by a river",
    "on a farm",
    "near a forest",
    "on a hill",
    "in a quiet village",
]
GOALS = [
    "the garden",
    "the market",
    "the forest",
    "the river",
    "the school",
    "the bridge",
    "the old mill",
]
HIDING = [
    "under a tree",
    "behind a stone",
    "under the bed",
    "in the grass",
    "behind the door",
    "on a wall",
]
WEATHER = [
    "The sun was warm",
    "It was raining",
    "The wind was cold",
    "It was snowing",
    "The sky was grey",
]
TIMES = ["One day", "One morning", "One evening", "One winter day", "On a Sunday", "Last summer"]
FOODS = ["bread", "soup", "apples", "cake", "cheese", "honey", "warm milk"]


def parts(hero: str, pick: Callable[[list[str]], str]) -> list[list[str]]:
    """What a story about `she` or `he` consists of, in order, each in several wordings."""
    name, friend = pick(NAMES[hero]), pick(FRIENDS)
    them, their = FORMS[hero]
    kind = pick([k for k in KINDS if k != "girl" or hero == "she"])
    thing, colour, goal = pick(THINGS), pick(COLOURS), pick(GOALS)
    place = pick(PLACES)
    both = f"{name} and {their} {friend}"
    opening = [
        f"Once upon a time there was {pick(NATURES)} {kind} called {name}, who lived {place}.",
        f"{name} was {pick(NATURES)} {kind} who lived {place}.",
        f"There was once {pick(NATURES)} {kind}. {hero.capitalize()} was called {name} and lived {place}.",
    ]
    wish = [
        f"{name} had a {colour} {thing} and liked it very much.",
        f"Most of all {hero} loved {their} {colour} {thing}.",
        f"{their.capitalize()} {friend} had given {them} a {colour} {thing}.",
    ]
    trip = [
        f"{pick(TIMES)} {hero} went to {goal} with {their} {friend}.",
        f"{pick(TIMES)} {both} walked to {goal}. {pick(WEATHER)}.",
        f"{pick(TIMES)} {name} took the {thing} to {goal}. {pick(WEATHER)}.",
    ]
    loss = [
        f"But on the way {hero} lost the {thing}.",
        f"But when {hero} came to {goal}, the {thing} was gone.",
        f"There {hero} played all day and forgot the {thing}.",
    ]
    grief = [
        f"{name} was very sad and began to cry.",
        f'"Where is my {thing}?" said {name}.',
        f"{name} looked for it everywhere, but could not find it.",
    ]
    hidden = pick(HIDING)
    help_ = [
        f"Then {their} {friend} helped {them} to look for it.",
        f"{their.capitalize()} {friend} came and looked {hidden}.",
        f'"Do not cry, we will find your {thing}," said a stranger.',
    ]
    found = [
        f"At last they found the {colour} {thing} {hidden}.",
        f"And there it was: the {thing} lay {hidden}.",
    ]
    end = [
        f"{name} was happy again, and they went home and ate {pick(FOODS)}.",
        f"{name} thanked them, and in the evening they all ate {pick(FOODS)}.",
        f"From then on {name} took good care of the {thing}.",
        f"So {both} went home, and {hero} never lost the {thing} again.",
    ]
    return [opening, wish, trip, loss, grief, help_, found, end]


def story(source: random.Random) -> str:
    """One story, five to nine sentences."""
    return told(parts(source.choice(list(NAMES)), source.choice), source, [1, 4, 5])


def told(wordings: list[list[str]], source: random.Random, optional: list[int]) -> str:
    """A wording of each part, at most two of the optional ones left out."""
    left_out = source.sample(optional, source.randrange(3))
    return " ".join(
        source.choice(part) for number, part in enumerate(wordings) if number not in left_out
    )


def grammar() -> re.Pattern[str]:
    """What matches any one sentence of any story."""
    choices: list[str] = []

    def place_holder(options: list[str]) -> str:
        choices.append(f"(?:{'|'.join(map(re.escape, options))})")
        return chr(0xE000 + len(choices) - 1)  # of private use, so in no template

    written = {
        sentence
        for hero in NAMES
        for part in parts(hero, place_holder)
        for wording in part
        for sentence in sentences(wording)
    }
    patterns = "|".join(map(re.escape, sorted(written)))
    return re.compile(re.sub("[\ue000-\uf8ff]", lambda m: choices[ord(m[0]) - 0xE000], patterns))


def sentences(text: str) -> list[str]:
    """A text cut after its full stops."""
    return re.split(r"(?<=\.)\s+", text.strip())


def judge(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Shares of what a model wrote after openings; rows as a samples artifact has them.

    sentences: whole new sentences that the grammar can write; stories: samples in which all are; names and
    things: mentions that agree with the first name and the first thing of their text.
    """
    rule, names = grammar(), {name for some in NAMES.values() for name in some}
    marks: dict[str, list[bool]] = {"sentences": [], "stories": [], "names": [], "things": []}
    for row in rows:
        text = row["prompt"] + row["text"]
        written = sentences(text)[len(sentences(row["prompt"])) - 1 :]
        if row["finish"] != "stop" and not text.rstrip().endswith("."):
            written.pop()  # cut off in the middle
        right = [bool(rule.fullmatch(one)) for one in written]
        marks["sentences"] += right
        marks["stories"].append(all(right))
        words = re.findall(r"[A-Za-z]+", text)
        for kind, known in (("names", names), ("things", set(THINGS))):
            mentioned = [word for word in words if word in known]
            marks[kind] += [word == mentioned[0] for word in mentioned[1:]]
    return {name: sum(found) / max(1, len(found)) for name, found in marks.items()}


def opening(text: str) -> str:
    """The first words of a story."""
    return " ".join(text.split()[:OPENING])


def main() -> None:
    import grammars  # beside this file, which others import as pipelines.stories

    if sys.argv[1:] == ["check"]:
        rule = grammar()
        found = [bool(rule.fullmatch(one)) for one in sentences(sys.stdin.read())]
        print(f"{sum(found)} of {len(found)} sentences ({sum(found) / len(found):.1%})")
    else:
        grammars.run(__doc__, story, opening, judge)


if __name__ == "__main__":
    main()
