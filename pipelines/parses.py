"""How many sentences are grammatical English for link-grammar, a parser with rules for all of English.

    python pipelines/parses.py runs/quickstart/samples runs/quickstart/ar-samples [--words 25]
    python pipelines/parses.py < held-out.txt

Of samples, the whole sentences behind each prompt of 3 words or more and at most --words: long ones take
minutes. Needs `link-parser` (Debian and Ubuntu: link-grammar; macOS: brew install link-grammar).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

COMMAND = ["link-parser", "en", "-graphics=0", "-null=0", "-panic=0", "-timeout=20", "-verbosity=1"]
LEAST = 3  # words
ENDS = (".", "!", "?")  # of sentences


def sentences(text: str) -> list[str]:
    """The whole sentences of a text; what follows the last end is left out."""
    ends = re.split(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+", " ".join(text.split()) + " ")
    return [one for one in ends if one[-1:] in ".!?" and one]


def written(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The whole sentences that begin behind the prompts of samples."""
    for row in rows:
        begun = len(sentences(row["prompt"]))
        if not row["prompt"].rstrip().endswith(ENDS):
            begun += 1  # the prompt's last sentence, which the model only ended
        yield from sentences(row["prompt"] + row["text"])[begun:]


def parsed(found: list[str]) -> int:
    """How many of these sentences have a complete linkage."""
    # letters or quotes first: the parser takes other beginnings for commands
    lines = [re.sub(r"^[^A-Za-z\"']+", "", one) for one in found]
    done = subprocess.run(
        COMMAND, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True
    )
    return len(re.findall(r"^\t(?:Linkage 1|Unique linkage), cost vector", done.stdout, re.M))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", nargs="*", type=Path, help="samples; without, a text on stdin")
    parser.add_argument("--words", type=int, default=25, help="of the longest sentence")
    asked = parser.parse_args()
    if shutil.which(COMMAND[0]) is None:
        raise SystemExit(
            "parses: link-parser is not installed (Debian: apt-get install link-grammar)"
        )
    sources: dict[str, list[str]] = {}
    if asked.samples:
        from cola_cli.stages.sample import read_samples

        for path in asked.samples:
            sources[str(path)] = list(written(read_samples(path)))
    else:
        sources["stdin"] = sentences(sys.stdin.read())
    for name, every in sources.items():
        found = [one for one in every if LEAST <= len(one.split()) <= asked.words]
        share = parsed(found) / len(found) if found else 0
        print(f"{name}: {share:.1%} of {len(found)} sentences parse")


if __name__ == "__main__":
    main()
