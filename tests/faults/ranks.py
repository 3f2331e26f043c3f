"""Stages of two processes: at write points of rank 0, what happens to rank 1.

`python -m tests.faults.ranks` tries every point and writes the section of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.faults.breaking import ends_of_phases
from tests.faults.cases import DONE, Verdict
from tests.faults.points import Point
from tests.faults.processes import Outcome, Running, prepare
from tests.faults.stages import FOLDER, Stages, differences, fresh
from tests.reliability import RANKS, write_section
from tests.stages.ranks import environment, free_port

STAGES = ("train vae", "train prior")
FATES = ("SIGKILL", "SIGSTOP", "SIGTERM")
ABSENT = "never joins"
STOPPED = 128 + signal.SIGTERM
TIMEOUT = 0.15  # minutes, the setting train.timeout
SPARE_SECONDS = 60.0  # beyond it, for a machine that does other things too


def started(arguments: list[str], log: Path, rank: int, port: int, watched: Path | None) -> Running:
    """One rank of two."""
    before = dict(os.environ)
    os.environ.update(environment(rank, 2, port))
    try:
        return Running(arguments, log, watched)
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def pair(arguments: list[str], folder: Path, watched: Path | None) -> Iterator[list[Running]]:
    """Both ranks; the first waits at its write points inside `watched`."""
    port = free_port()
    ranks = [
        started(arguments, folder / f"rank-{rank}", rank, port, watched if rank == 0 else None)
        for rank in range(2)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            with contextlib.suppress(OSError):  # it has ended
                rank.kill()


def quiet(arguments: list[str], folder: Path, watched: Path | None = None) -> list[Point]:
    """Run both ranks to their end; the write points of rank 0."""
    points: list[Point] = []
    with pair(arguments, folder, watched) as (zero, one):
        while point := zero.next():
            points.append(point)
        for outcome in (zero.end(), one.end()):
            assert outcome.code == DONE, outcome.stderr
    return points


class Two:
    """The quiet artifact of a stage on two ranks, rank 0's write points, and the trials."""

    def __init__(self, stages: Stages, stage: str, folder: Path) -> None:
        self.stages, self.stage, self.folder = stages, stage, folder
        fresh(folder)
        watched = fresh(folder / "w")
        self.points = quiet(self._command(watched), folder, watched)
        (watched / FOLDER[stage]).rename(folder / "quiet")

    def _command(self, watched: Path) -> list[str]:
        output = watched / FOLDER[self.stage]
        return self.stages.command(self.stage, output, timeout=TIMEOUT)

    def trial(self, point: Point | None, fate: str) -> Verdict:
        """Let rank 1 meet its fate when rank 0 is at `point`; then run both again. None: it never joins."""
        verdict = Verdict()
        watched = fresh(self.folder / "w")
        arguments = self._command(watched)
        if point is None:
            begin = time.monotonic()
            alone = started(arguments, self.folder / "rank-0", 0, free_port(), None)
            self._judge(verdict, alone.end(), begin, watched)
        else:
            with pair(arguments, self.folder, watched) as (zero, one):
                here = zero.next()
                while here is not None and str(here) != str(point):
                    here = zero.next()
                if here is None:
                    verdict.lost.append("rank 0 did not come there")
                one.signal(getattr(signal, fate))
                begin = time.monotonic()
                outcome = zero.end()
                if fate == "SIGSTOP":
                    one.kill()
                one.end()
                self._judge(verdict, outcome, begin, watched)
        quiet(arguments, self.folder)
        verdict.resumed += 1
        self._compare(verdict, watched)
        return verdict

    def _judge(self, verdict: Verdict, outcome: Outcome, begin: float, watched: Path) -> None:
        said = f"[exit {outcome.code}: {outcome.stderr.strip()[-300:]}]"
        if (seconds := time.monotonic() - begin) > 60 * TIMEOUT + SPARE_SECONDS:
            verdict.lost.append(f"rank 0 went on for {seconds:.0f} s {said}")
        if outcome.code == DONE:  # rank 1 had done all of its work
            self._compare(verdict, watched)
        elif "Traceback" in outcome.stderr or "a fault in cola" in outcome.stderr:
            verdict.unclear.append(f"no clear message {said}")
        elif outcome.code == STOPPED and "interrupted" in outcome.stderr:
            pass  # SIGTERM to one rank: all save and stop together
        elif "rank 1" not in outcome.stderr:
            verdict.unclear.append(f"the message does not name rank 1 {said}")

    def _compare(self, verdict: Verdict, watched: Path) -> None:
        different, count = differences(watched / FOLDER[self.stage], self.folder / "quiet")
        verdict.bytes += count
        if different:
            verdict.lost.append("not the quiet run's: " + "; ".join(different))


def main(arguments: list[str] | None = None) -> int:
    """Try the points and fates; 1 when something was lost or not said as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.ranks", description=__doc__)
    parser.add_argument("--stages", nargs="+", default=list(STAGES))
    parser.add_argument("--points", type=int, help="only so many of each stage, evenly spread")
    parser.add_argument("--page", action="store_true", help="write the section of the page")
    asked = parser.parse_args(arguments)
    prepare()
    tried: Counter[tuple[str, str]] = Counter()
    lost = unclear = compared = 0
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="cola-ranks-") as home:
        stages = Stages(Path(home) / "made")
        made: list[str] = []

        def make(stage: str, command: list[str]) -> None:
            if stage in ("tokenize", "train vae", "encode"):
                outcome = Running(command, Path(home) / "log").end()
                assert outcome.code == DONE, outcome.stderr
                made.append(stage)

        stages.make(make)
        for stage in asked.stages:
            two = Two(stages, stage, Path(home) / "two")
            found[stage] = len(two.points)
            points = ends_of_phases(two.points)
            if asked.points is not None:
                points = points[:: max(1, len(points) // asked.points)][: asked.points]
            cases: list[tuple[Point | None, str]] = [(None, ABSENT)]
            cases += [
                (point, FATES[(n + shift) % len(FATES)])
                for n, point in enumerate(points)
                for shift in range(1 if asked.points is not None else len(FATES))
            ]
            for point, fate in cases:
                verdict = two.trial(point, fate)
                tried[stage, fate] += 1
                compared += verdict.bytes
                lost += bool(verdict.lost)
                unclear += bool(verdict.unclear)
                for text in [*verdict.lost, *(f"(not said) {text}" for text in verdict.unclear)]:
                    print(f"{stage}: {fate} at {point}: {text}", flush=True)
            shutil.rmtree(two.folder)
    total = sum(tried.values())
    print(f"{total} faults: {lost} lost or silently wrong, {unclear} not said as promised")
    if asked.page:
        write_section(RANKS, section(asked.stages, found, tried, lost, unclear, compared))
    return bool(lost or unclear)


def section(
    stages: list[str],
    found: dict[str, int],
    tried: Counter[tuple[str, str]],
    lost: int,
    unclear: int,
    compared: int,
) -> str:
    """The section of docs/reliability.md."""
    text = (
        f"`python -m tests.faults.ranks {' '.join(sys.argv[1:])}` wrote this section."
        " Two processes (DDP over gloo) train;"
        "\nrank 0 is held at a write point, rank 1 meets its fate there. Rank 0 must end within"
        "\n`train.timeout`, naming rank 1, and both, run again, must end in every byte of an undisturbed"
        "\nrun of two.\n\n"
        f"|  | {' | '.join(f'`{stage}`' for stage in stages)} |\n|---|{'---:|' * len(stages)}\n"
        f"| write points of rank 0 | {' | '.join(str(found[stage]) for stage in stages)} |\n"
    )
    for fate in (*FATES, ABSENT):
        title = f"rank 1 {fate}" if fate == ABSENT else f"{fate} to rank 1"
        text += f"| {title} | {' | '.join(str(tried[stage, fate]) for stage in stages)} |\n"
    return text + (
        f"\nLost or silently wrong: **{lost}**. Not said as promised: {unclear}."
        f" Bytes compared: {compared:,}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
