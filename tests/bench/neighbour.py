"""What a busy neighbour costs a training: shares side by side, against torch's threads in every operation.

    python tests/bench/neighbour.py [--rounds 3] [--seconds 8] [--kinds vae prior ar] [--json]

The `tiny` preset trains on made-up words, alone and beside a process that never rests. The ways take turns,
each time in a new process. `kept` is the speed beside the neighbour over that alone, `gain` that of shares
over that of torch's threads, both within a round: the median and, in brackets, the least of all rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli.families import FAMILIES
from cola_cli.reporting import Silent
from cola_cli.settings import TABLES
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.resolve import resolve
from cola_cli.stages.encode import encode
from cola_cli.stages.run import Run
from cola_cli.stages.tokenize import tokenize
from cola_cli.stages.train import train
from cola_cli.training.shares import Shares

WAYS = THREADS, SHARES = "torch's threads", "shares"
WARM = 3  # steps before the clock starts
FAMILY = {family.command: family for family in FAMILIES.values()}
BUSY = "while True: pass"


def settings(table: str, *assignments: str) -> Any:
    """The `tiny` preset's."""
    return resolve(TABLES[table], table, preset="tiny", assignments=assignments)


def make(folder: Path) -> None:
    """Tokens, and latents of an untrained VAE."""
    source = random.Random(0)
    words = ["".join(source.choices("etaoinshrdlu", k=2 + i % 7)) for i in range(9000)]
    text = "\n\n".join(" ".join(source.choices(words, k=120)) for _ in range(400))
    (folder / "corpus.txt").write_text(text)
    tokenize([str(folder / "corpus.txt")], folder / "tokens", settings("tokenize"))
    once = settings("vae", "train.steps=1", "train.validation_sequences=1")
    train(FAMILY["vae"], folder / "tokens", folder / "vae", once)
    encode(folder / "tokens", folder / "vae", folder / "latents", EncodeSettings())


class Clock(Silent):
    """Prints the steps a second once they were timed for so long, and ends the process."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.steps = -WARM
        self.begin = 0.0

    def advance(self, count: int, **metrics: float | str) -> None:
        """One step is done."""
        self.steps += 1
        now = time.perf_counter()
        if self.steps == 0:
            self.begin = now
        elif self.steps > 0 and now - self.begin > self.seconds:
            print(self.steps / (now - self.begin), flush=True)
            os._exit(0)


def train_for(folder: Path, kind: str, way: str, seconds: float) -> None:
    """Train in this process until the clock ends it."""
    if way != SHARES:
        Shares.chosen = lambda train, threads, *_: Shares(0, threads)  # type: ignore[method-assign]
    family = FAMILY[kind]
    chosen = settings(family.table, "train.steps=1000000", "train.validation_sequences=8")
    with tempfile.TemporaryDirectory(dir=folder) as output:
        run = Run(reporter=Clock(seconds), device="cpu")
        train(family, folder / family.reads, Path(output) / "out", chosen, run)


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A process that never rests."""
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        try:
            yield
        finally:
            process.kill()


def speed(folder: Path, kind: str, way: str, seconds: float) -> float:
    """Steps a second of a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--child",
        str(folder),
        kind,
        way,
        "--seconds",
        str(seconds),
    ]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def shown(ratios: list[float]) -> str:
    """The median and the least."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f})"


def compare(folder: Path, kind: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Every way alone and beside a neighbour, in turns."""
    alone: dict[str, list[float]] = {way: [] for way in WAYS}
    beside: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            alone[way].append(speed(folder, kind, way, seconds))
        with neighbour():
            for way in WAYS:
                beside[way].append(speed(folder, kind, way, seconds))
    print(f"\n{kind:<18}{'alone':>10}{'beside':>10}   kept")
    for way in WAYS:
        kept = [b / a for a, b in zip(alone[way], beside[way], strict=True)]
        medians = (statistics.median(alone[way]), statistics.median(beside[way]))
        print(f"{way:<18}{medians[0]:>10.2f}{medians[1]:>10.2f}   {shown(kept)}")
    gains = {}
    for name, speeds in (("alone", alone), ("beside", beside)):
        pairs = zip(speeds[SHARES], speeds[THREADS], strict=True)
        gains[name] = [new / old for new, old in pairs]
    print("gain of shares    " + ", ".join(f"{n} {shown(g)}" for n, g in gains.items()), flush=True)
    return {"kind": kind, "alone": alone, "beside": beside}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--kinds", nargs="+", default=["vae", "prior", "ar"], choices=list(FAMILY))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        folder, kind, way = given.child
        return train_for(Path(folder), kind, way, given.seconds)
    print("steps a second of the tiny preset; ratios: the median (the least) of the rounds")
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        found = [compare(Path(name), kind, given.rounds, given.seconds) for kind in given.kinds]
    if given.json:
        print(json.dumps(found))
    return None


if __name__ == "__main__":
    main()
