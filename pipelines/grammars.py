"""What the scripts that write texts and judge models by them have in common: their command lines."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# rows of a samples artifact -> shares
Judge = Callable[[Iterable[dict[str, Any]]], dict[str, float]]


def tell(judge: Judge, samples: str) -> None:
    """Print the marks of a samples artifact."""
    from cola_cli.stages.sample import read_samples

    shares = judge(read_samples(Path(samples)))
    print(", ".join(f"{name} {share:.1%}" for name, share in shares.items()))


def run(
    usage: str | None,
    text: Callable[[random.Random], str],
    opening: Callable[[str], str],
    judge: Judge,
) -> None:
    """The command line of a grammar: its texts, their openings as prompts, or the marks of samples."""
    match sys.argv[1:]:
        case ["judge", samples]:
            tell(judge, samples)
        case ["openings", count, seed]:
            source = random.Random(int(seed))
            for _ in range(int(count)):
                print(json.dumps({"prompt": opening(text(source))}))
        case [count, seed] if count.isdecimal():
            source = random.Random(int(seed))
            for _ in range(int(count)):
                print(text(source) + "\n")
        case _:
            print(usage)
