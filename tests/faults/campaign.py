"""All cases of all stages: made, drawn, run side by side, counted."""

from __future__ import annotations

import json
import math
import os
import random
import selectors
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import breaking, cutting, damaging, filling, starting, strace
from tests.faults.cases import Case, Verdict
from tests.faults.points import Point
from tests.faults.processes import run, trace
from tests.faults.stages import FOLDER, ORDER, SAME_LOOP, Stages, fresh

KINDS = (
    "killed before", "killed after", "killed within", "killed in --overwrite", "power cuts", "EIO",
    "ENOSPC", "full disks", "signals", "workers", "two writers", "bytes damaged", "files removed",
    "foreign files", "changed settings",
)  # fmt: skip
SPARE_PAGES = 6


@dataclass
class Result:
    """A case by name, and its verdict."""

    stage: str
    kind: str
    name: str
    verdict: Verdict


@dataclass
class Campaign:
    """Quiet artifacts, their write points, and the faults to try on them."""

    home: Path
    seed: int
    points: dict[str, list[Point]] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # what: why
    agreed: list[str] = field(default_factory=list)  # stages whose points strace counts alike
    disagreements: list[str] = field(default_factory=list)  # with strace

    def prepare(self, stages: Iterable[str] = ORDER) -> None:
        """Make the quiet artifacts, list their write points, and think up every case."""
        made = Stages(self.home)
        made.write_inputs()
        made.other.write_inputs(seed=1)
        made.other.make(self._quiet)
        disks = {stage: self._trace(made, stage) for stage in ORDER}
        # `encode` needs another vae of the same tokenizer
        another = made.other.input("vae")
        shutil.rmtree(another)
        self._quiet("train vae", made.command("train vae", another, seed=5))
        if reason := filling.why_not():
            self.skipped["full disks"] = reason
        for stage in stages:
            self._cases(made, stage, disks[stage])

    def again(self, stage: str) -> None:
        """List the points of one stage once more, and think up its cases alone."""
        self.cases = []
        made = Stages(self.home)
        self._cases(made, stage, self._trace(made, stage))

    def _trace(self, made: Stages, stage: str) -> dict[str, tuple[str, cutting.Disk]]:
        watched = fresh(self.home / "watched")
        made.lay(stage, watched / FOLDER[stage])
        arguments = made.command(stage, watched / FOLDER[stage])
        outcome, disks = cutting.trace_disks(arguments, self.home / "log", watched)
        assert outcome.code == 0, outcome.stderr
        self.points[stage] = outcome.points
        if not (self.home / FOLDER[stage]).exists():
            (watched / FOLDER[stage]).rename(self.home / FOLDER[stage])
        return disks

    def _quiet(self, stage: str, arguments: list[str]) -> None:
        outcome = run(arguments, self.home / "log")
        assert outcome.code == 0, f"{stage}: {outcome.stderr}"

    def _cases(self, made: Stages, stage: str, disks: dict[str, tuple[str, cutting.Disk]]) -> None:
        points = self.points[stage]
        if stage in SAME_LOOP:
            cases = [
                *breaking.kills(made, stage, points),
                *cutting.power_cuts(made, stage, disks),
                *breaking.errors(made, stage, points),
                *breaking.signals(made, stage, points),
                *breaking.writers(made, stage, points),
            ]
            self.cases += [case for case in cases if case.kind in SAME_LOOP[stage]]
            return
        watched = fresh(self.home / "watched")
        output = watched / FOLDER[stage]
        shutil.copytree(made.other.home / FOLDER[stage], output)
        arguments = [*made.command(stage, output), "--overwrite"]
        overwriting = trace(arguments, self.home / "log", watched)
        size = sum(
            p.stat().st_size // filling.PAGE + 2 for p in (self.home / FOLDER[stage]).rglob("*")
        )
        self.cases += breaking.kills(made, stage, points)
        self.cases += breaking.overwriting(made, stage, overwriting.points)
        self.cases += cutting.power_cuts(made, stage, disks)
        self.cases += breaking.errors(made, stage, points)
        if "full disks" not in self.skipped:
            self.cases += filling.full_disks(made, stage, 2 * size + SPARE_PAGES)
        self.cases += breaking.signals(made, stage, points)
        self.cases += starting.signals(made, stage)
        self.cases += starting.workers(made, stage)
        self.cases += breaking.writers(made, stage, points)
        self.cases += damaging.finished(made, stage, self.seed)
        self.cases += damaging.unfinished(made, stage, points, self.seed)
        self.cases += damaging.foreign(made, stage, points)
        self.cases += damaging.changed(made, stage, points)

    def compare_with_strace(self, stages: Iterable[str]) -> None:
        """Let strace count the calls of a `cola` started afresh. Sets `agreed` or `skipped`."""
        if reason := strace.why_not():
            self.skipped["strace"] = reason
            return
        for stage in stages:
            folder = self.home / "strace"
            found = strace.disagreements(Stages(self.home), stage, self.points[stage], folder)
            if found:
                self.disagreements += [f"{stage}: {text}" for text in found]
            else:
                self.agreed.append(stage)

    def draw(self, count: int) -> None:
        """Keep `count` cases of each stage, of as many kinds as can be."""
        source = random.Random(self.seed)
        kept: list[Case] = []
        for stage in ORDER:
            queues: dict[str, list[Case]] = {}
            for case in self.cases:
                if case.stage == stage:
                    queues.setdefault(case.kind, []).append(case)
            for queue in queues.values():
                source.shuffle(queue)
            kinds = list(queues)
            source.shuffle(kinds)
            drawn = [queues[k][n] for n in range(count) for k in kinds if n < len(queues[k])]
            kept += drawn[:count]
        self.cases = kept

    def run(
        self, jobs: int, tell: Callable[[int, Result], None], seconds: float = math.inf
    ) -> list[Result]:
        """Run the cases in `jobs` processes, in an order of chance, as many as `seconds` allow.

        `tell(done, result)` is called after each.
        """
        end = time.monotonic() + seconds
        selector = selectors.DefaultSelector()
        order = list(self.cases)
        random.Random(self.seed).shuffle(order)  # long and short cases come to all alike
        children = []
        for job in range(jobs):
            reading, writing = os.pipe()
            if not (child := os.fork()):
                _work(order[job::jobs], self.home / f"job-{job}", writing, end)
            os.close(writing)
            children.append(child)
            selector.register(os.fdopen(reading, "r"), selectors.EVENT_READ)
        results: list[Result] = []
        while selector.get_map():
            for key, _ in selector.select():
                stream: Any = key.fileobj
                if line := stream.readline():
                    stage, kind, name, values = json.loads(line)
                    results.append(Result(stage, kind, name, Verdict(**values)))
                    tell(len(results), results[-1])
                else:
                    selector.unregister(stream)
                    stream.close()
        for child in children:
            os.waitpid(child, 0)
        if len(results) != len(order) and time.monotonic() < end:
            raise RuntimeError(f"{len(order) - len(results)} cases have no result")
        return results


def _work(cases: list[Case], folder: Path, pipe: int, end: float) -> None:
    """In a child: run cases one after the other until `end` and never return."""
    try:
        with os.fdopen(pipe, "w") as stream:
            for case in cases:
                if time.monotonic() > end:
                    break
                try:
                    verdict = case.check(fresh(folder))
                except Exception:
                    verdict = Verdict(lost=[f"the harness failed: {traceback.format_exc()}"])
                line = [case.stage, case.kind, case.name, vars(verdict)]
                print(json.dumps(line), file=stream, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(0)


def counts(results: list[Result]) -> Counter[tuple[str, str]]:
    """Cases by kind and stage."""
    return Counter((result.kind, result.stage) for result in results)


def seconds_since(begin: float) -> str:
    """A duration for people."""
    seconds = int(time.monotonic() - begin)
    return f"{seconds // 60} min {seconds % 60} s"
