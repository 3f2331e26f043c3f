"""Stages of two processes: at write points of the first, what happens to the second.

`python -m tests.faults.ranks --minutes 60 --page` tries fates by chance for so long and writes the section of
docs/reliability.md; without --minutes and --sample it tries every fate at every point.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cases import DONE, Verdict
from tests.faults.points import Point
from tests.faults.processes import FAILURE, Outcome, Running, prepare
from tests.faults.stages import FOLDER, ORDER, Stages, differences, fresh
from tests.ports import free_port
from tests.reliability import RANKS, write_section
from tests.stages.ranks import environment

TRAINED = ("train vae", "train prior", "train prior, joint", "distill", "train ar")
SHARED = ("encode", "tokenize")
KILLED, STOPPED, ENDED, FAILED, SLOW, ABSENT = (
    "SIGKILL", "SIGSTOP", "SIGTERM", "an error", "slow", "never joins",
)  # fmt: skip
FATES = (KILLED, STOPPED, ENDED, FAILED, SLOW)
TIMEOUT = 0.15  # minutes, the setting timeout
SLOW_SECONDS = (
    5.0  # longer than peers are silent before they are asked after, shorter than the timeout
)
SPARE_SECONDS = 60.0  # beyond the timeout, for a machine that does other things too
LATE_SECONDS = 0.3  # a shard that is not waited for goes on for up to so long before its fate


@dataclass(frozen=True)
class Work:
    """A stage, and how two processes share it: ddp or fsdp; ranks of one launch; shards."""

    stage: str
    how: str

    def __str__(self) -> str:
        return f"{self.stage}, {self.how}"

    @property
    def shards(self) -> bool:
        """Whether each process ends for itself, and a third one puts all together."""
        return self.how == "shards"

    def arguments(self, stages: Stages, output: Path) -> list[str]:
        """Of `cola`."""
        settings = {"timeout": TIMEOUT} | ({"parallel": self.how} if self.stage in TRAINED else {})
        return stages.command(self.stage, output, **settings)


WORKS = (
    *(Work(stage, how) for stage in TRAINED for how in ("ddp", "fsdp")),
    *(Work(stage, how) for stage in SHARED for how in ("ranks", "shards")),
)


class Two:
    """The quiet artifact of a work, the write points of its first process, and the trials."""

    def __init__(self, stages: Stages, work: Work, folder: Path) -> None:
        self.stages, self.work, self.folder = stages, work, fresh(folder)
        self.name = FOLDER[work.stage]
        watched = fresh(folder / "w")
        self.points = self.undisturbed(watched, watch=True)
        (watched / self.name).rename(folder / "quiet")

    def cases(self) -> list[tuple[Point | None, str]]:
        """Every fate at every point; None: before any."""
        absent = [] if self.work.shards else [(None, ABSENT)]
        return [*absent, *((point, fate) for point in self.points for fate in FATES)]

    def started(self, number: int, port: int, watched: Path | None = None) -> Running:
        """Process `number` of two."""
        arguments = self.work.arguments(self.stages, self.folder / "w" / self.name)
        if self.work.shards:
            return Running([*arguments, "--shard", f"{number}/2"], self._log(number), watched)
        before = dict(os.environ)
        os.environ.update(environment(number, 2, port))
        try:
            return Running(arguments, self._log(number), watched)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _log(self, number: int) -> Path:
        return self.folder / f"process-{number}"

    @contextlib.contextmanager
    def pair(self, watched: Path | None = None) -> Iterator[tuple[Running, Running]]:
        """Both processes; the first waits at its write points inside `watched`."""
        port = free_port()
        first = self.started(0, port, watched)
        second = self.started(1, port)
        try:
            yield first, second
        finally:
            for process in (first, second):
                with contextlib.suppress(OSError):  # it has ended
                    process.kill()

    def undisturbed(self, watched: Path, watch: bool = False) -> list[Point]:
        """Let both do all of the work; the write points of the first, if they are watched."""
        points: list[Point] = []
        with self.pair(watched if watch else None) as (first, second):
            while point := first.next():
                points.append(point)
            outcomes = [first.end(), second.end()]
        if self.work.shards:
            merging = self.work.arguments(self.stages, watched / self.name)
            outcomes.append(Running(merging, self._log(2)).end())
        for outcome in outcomes:
            if outcome.code != DONE:
                raise RuntimeError(f"exit {outcome.code}: {outcome.stderr}")
        return points

    def trial(self, point: Point | None, fate: str, late: float) -> Verdict | None:
        """The verdict on a fate that the second process meets when the first is at `point`.

        Then both run again. None when the first did not come there this time: which of two shards makes
        what they share is a matter of time.
        """
        verdict = Verdict()
        watched = fresh(self.folder / "w")
        if point is None:
            begin = time.monotonic()
            outcome = self.started(0, free_port()).end()
            self._judge(verdict, fate, outcome, time.monotonic() - begin)
        else:
            with self.pair(watched) as (first, second):
                here = first.next()
                while here is not None and str(here) != str(point):
                    here = first.next()
                if here is None:
                    first.end(), second.end()
                    return None
                if self.work.shards:
                    time.sleep(late)
                self._befall(verdict, fate, first, second)
        try:
            self.undisturbed(watched)
        except RuntimeError as error:
            verdict.lost.append(f"the run after it failed [{error}]")
        verdict.resumed += 1
        self._compare(verdict)
        return verdict

    def _befall(self, verdict: Verdict, fate: str, first: Running, second: Running) -> None:
        stops = fate in (STOPPED, SLOW)
        second.signal(
            signal.SIGSTOP if stops else FAILURE if fate == FAILED else getattr(signal, fate)
        )
        begin = time.monotonic()
        if fate == SLOW:
            first.go_on()
            time.sleep(SLOW_SECONDS)
            second.signal(signal.SIGCONT)
        outcome = first.end()
        seconds = time.monotonic() - begin
        if fate == STOPPED:
            second.kill()
        self._judge(verdict, fate, outcome, seconds)
        told = second.end()
        if fate != STOPPED and ("Traceback" in told.stderr or "a fault in cola" in told.stderr):
            verdict.unclear.append(f"the second has no clear message {_words(told)}")
        if fate == SLOW and told.code != DONE:
            verdict.lost.append(f"the slow one did not end well {_words(told)}")

    def _judge(self, verdict: Verdict, fate: str, outcome: Outcome, seconds: float) -> None:
        """What the first process must have done, which itself met nothing."""
        if seconds > 60 * TIMEOUT + SPARE_SECONDS:
            verdict.lost.append(f"it went on for {seconds:.0f} s {_words(outcome)}")
        if outcome.code == DONE:  # the other had done all of its work, or shares nothing
            if not self.work.shards:
                self._compare(verdict)
        elif "Traceback" in outcome.stderr or "a fault in cola" in outcome.stderr:
            verdict.unclear.append(f"no clear message {_words(outcome)}")
        elif self.work.shards:
            if fate != STOPPED or "which is stopped" not in outcome.stderr:
                verdict.lost.append(f"another shard's end ended it {_words(outcome)}")
        elif fate == SLOW:
            verdict.lost.append(f"it did not wait {_words(outcome)}")
        elif fate == ENDED and "interrupted" in outcome.stderr:
            pass  # all save and stop together
        elif "rank 1" not in outcome.stderr:
            verdict.unclear.append(f"the message does not name rank 1 {_words(outcome)}")

    def _compare(self, verdict: Verdict) -> None:
        different, count = differences(self.folder / "w" / self.name, self.folder / "quiet")
        verdict.bytes += count
        if different:
            verdict.lost.append("not the quiet run's: " + "; ".join(different))


def _words(outcome: Outcome) -> str:
    return f"[exit {outcome.code}: {outcome.stderr.strip()[-300:]}]"


Case = tuple[Two, Point | None, str, float]  # of which work, where, what, and how late


@dataclass
class Tally:
    """What was found and tried of all works."""

    points: dict[Work, int]
    cases: dict[Work, int]
    tried: Counter[tuple[Work, str]]
    lost: int = 0
    unclear: int = 0
    missed: int = 0
    bytes: int = 0

    def add(self, work: Work, fate: str, verdict: Verdict) -> None:
        self.tried[work, fate] += 1
        self.bytes += verdict.bytes
        self.lost += bool(verdict.lost)
        self.unclear += bool(verdict.unclear)


def main(arguments: list[str] | None = None) -> int:
    """Try points and fates; 1 when something was lost or not said as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.ranks", description=__doc__)
    parser.add_argument("--works", nargs="+", default=[str(work) for work in WORKS])
    parser.add_argument("--sample", type=int, metavar="N", help="only N of each work, by chance")
    parser.add_argument("--minutes", type=float, help="all works in turns, for so long")
    parser.add_argument("--seed", type=int, default=secrets.randbits(20), help="of the order")
    parser.add_argument("--page", action="store_true", help="write the section of the page")
    asked = parser.parse_args(arguments)
    works = [work for work in WORKS if str(work) in asked.works]
    begin = time.monotonic()
    print(f"seed {asked.seed}", flush=True)
    prepare()
    tally = Tally({}, {}, Counter())
    with tempfile.TemporaryDirectory(prefix="cola-ranks-") as home:
        stages = made(Path(home))
        turns = []
        for work in works:
            two = Two(stages, work, Path(home) / str(work))
            cases = two.cases()
            tally.points[work], tally.cases[work] = len(two.points), len(cases)
            source = random.Random(f"{asked.seed} {work}")
            source.shuffle(cases)
            turns.append(iter([(two, *case, source.random()) for case in cases[: asked.sample]]))
        for two, point, fate, late in in_turns(turns):
            if asked.minutes is not None and time.monotonic() - begin > 60 * asked.minutes:
                break
            verdict = two.trial(point, fate, late * LATE_SECONDS)
            if verdict is None:
                tally.missed += 1
                continue
            tally.add(two.work, fate, verdict)
            for text in [*verdict.lost, *(f"(not said) {text}" for text in verdict.unclear)]:
                print(f"{two.work}: {fate} at {point}: {text}", flush=True)
    total = tally.tried.total()
    print(
        f"{total} faults: {tally.lost} lost or silently wrong, {tally.unclear} not said as promised"
    )
    if asked.page:
        write_section(RANKS, section(works, tally, asked.seed))
    return bool(tally.lost or tally.unclear)


def in_turns(sources: list[Iterator[Case]]) -> Iterator[Case]:
    """One of each, again and again, until all are empty."""
    while sources:
        for source in list(sources):
            if (found := next(source, None)) is None:
                sources.remove(source)
            else:
                yield found


def made(home: Path) -> Stages:
    """The artifacts that the works read."""
    stages = Stages(home / "made")

    def make(stage: str, command: list[str]) -> None:
        if stage in ORDER[: ORDER.index("sample")]:
            outcome = Running(command, home / "log").end()
            assert outcome.code == DONE, outcome.stderr

    stages.make(make)
    return stages


def section(works: list[Work], tally: Tally, seed: int) -> str:
    """The section of docs/reliability.md."""
    fates = {fate: f"the second: {fate}" for fate in (*FATES, ABSENT)}
    rows = "".join(
        f"| `{work.stage}`, {work.how} | {tally.points[work]} | {tally.cases[work]:,} |"
        f" {' | '.join(str(tally.tried[work, fate]) for fate in fates)} |\n"
        for work in works
    )
    return (
        f"`python -m tests.faults.ranks {' '.join(sys.argv[1:])}` wrote this section on"
        f" {time.strftime('%d %B %Y')} (seed {seed}). Two\nprocesses share a stage: training under DDP or"
        " FSDP (gloo), `encode` and `tokenize` as ranks of one launch, and as\ntwo `--shard` runs at once."
        " The first is held at a write point; there the second gets SIGKILL, SIGSTOP for good,\nSIGTERM, an"
        f" error in its own code, or SIGSTOP for {SLOW_SECONDS:g} s (slow); or it never came. Rank 0 must end"
        " within the\nsetting `timeout`, naming rank 1 and its error, or wait for a slow one; a shard must go"
        " on whatever the other\ndoes. Then both run again and must end in every byte of an undisturbed run"
        " of two. Points and fates were drawn by\nchance; the table says how many of all there are.\n\n"
        f"| stage | write points | points x fates | {' | '.join(fates)} |\n"
        f"|---|{'---:|' * (len(fates) + 2)}\n{rows}"
        f"\nTried: {tally.tried.total():,} of {sum(tally.cases.values()):,}. Lost or silently wrong:"
        f" **{tally.lost}**. Not said as promised: {tally.unclear}. Bytes\ncompared: {tally.bytes:,}."
        f" {tally.missed} times the first process did not come to the point, as the other shard had done the"
        " work there.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
