"""Kills, failing calls, signals and second writers at every write point."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cola_cli.artifacts.manifest import MANIFEST_NAME, NEW, read_manifest
from cola_cli.artifacts.replacement import REPLACED
from cola_cli.artifacts.verify import verify
from cola_cli.errors import InputError
from tests.faults.cases import CONFLICT, DONE, Case, Trial, Verdict, named_path
from tests.faults.points import Point
from tests.faults.processes import ERRORS, SIGNALS, Running, run, run_with_fault
from tests.faults.stages import FOLDER, Stages, differences, snapshot

KILLS = ("before", "after", "within")
OF_THE_MOVE = (MANIFEST_NAME, REPLACED)


def kills(stages: Stages, stage: str, points: list[Point]) -> Iterator[Case]:
    """SIGKILL before and after each point, and in the middle of each write."""
    for point in points:
        for when in KILLS:
            if when != "within" or (point.call == "write" and point.size > 1):
                check = partial(_killed, stages, stage, point, when)
                yield Case(stage, f"killed {when}", str(point), check)


def _killed(stages: Stages, stage: str, point: Point, when: str, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    outcome = run_with_fault(trial.command(), trial.log, trial.watched, point, when)
    if not outcome.reached or outcome.code != -9:
        trial.lost("it was not killed there", outcome)
    return trial.finish()


def overwriting(stages: Stages, stage: str, points: list[Point]) -> Iterator[Case]:
    """SIGKILL while --overwrite replaces another artifact.

    At every call that touches its place, or the manifest of what is to replace it; of the others, which make
    the new artifact beside it, at the ends of each phase.
    """
    beside = f"{FOLDER[stage]}/{NEW}/"
    ends = ends_of_phases(points)
    for point in points:
        name = point.path.removeprefix(beside)
        if point.path.startswith(beside) and not name.startswith(OF_THE_MOVE) and point not in ends:
            continue
        for when in ("before", "after"):
            check = partial(_overwriting, stages, stage, point, when)
            yield Case(stage, "killed in --overwrite", f"{when} {point}", check)


def _overwriting(stages: Stages, stage: str, point: Point, when: str, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    shutil.copytree(stages.other.home / FOLDER[stage], trial.output)
    arguments = trial.command("--overwrite")
    outcome = run_with_fault(arguments, trial.log, trial.watched, point, when)
    if not outcome.reached or outcome.code != -9:
        trial.lost("it was not killed there", outcome)
    before = snapshot(trial.watched)
    there = read_manifest(trial.output)
    harmed = [found for found in verify(trial.output).findings if not found.foreign]
    if there.status == "complete" and harmed:
        trial.lost(f"the artifact there is not whole: {harmed[0].problem}")
    if there.status == "incomplete" and not (trial.output / NEW / REPLACED).exists():
        trial.lost("the old artifact is gone before the new one is whole")
    # without --overwrite: the old identity still stands and is not touched, or the new one goes on
    outcome = trial.run()
    if outcome.code == CONFLICT:
        trial.untouched(before)
    elif outcome.code == DONE:
        trial.compare()
    else:
        trial.lost("the run after it failed", outcome)
    return trial.finish("--overwrite")


def errors(stages: Stages, stage: str, points: list[Point]) -> Iterator[Case]:
    """EIO once, and a disk that is full from there on, at each point."""
    for point in points:
        for error in ERRORS:
            check = partial(_failed, stages, stage, point, error)
            yield Case(stage, error, str(point), check)


def _failed(stages: Stages, stage: str, point: Point, error: str, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    outcome = run_with_fault(trial.command(), trial.log, trial.watched, point, error)
    if not outcome.reached:
        trial.lost("it did not come there", outcome)
    if outcome.code < 0 or outcome.code >= 70:
        trial.lost("it crashed", outcome)
    elif outcome.code == DONE:
        # allowed where nothing depends on the call, such as removing what is not needed any more
        trial.compare()
    else:
        # a disk that stays full may be met first by the thread that writes another file
        trial.said(outcome, trial.output if error == "ENOSPC" else named_path(trial, point))
        if left := [n for n in trial.left_overs() if point.call != "unlink"]:
            trial.unclear(f"left over: {', '.join(left)}", outcome)
    return trial.finish()


def signals(stages: Stages, stage: str, points: list[Point]) -> Iterator[Case]:
    """SIGTERM and SIGINT, one of them twice in a row, at the first and last point of each phase."""
    for number, point in enumerate(ends_of_phases(points)):
        once, twice = ("SIGTERM", "SIGINT") if number % 2 else ("SIGINT", "SIGTERM")
        for name in (once, f"{twice} twice"):
            check = partial(_signalled, stages, stage, point, name)
            yield Case(stage, "signals", f"{name} at {point}", check)


def ends_of_phases(points: list[Point]) -> list[Point]:
    """The first and the last point of each phase."""
    first: dict[str, Point] = {}
    last: dict[str, Point] = {}
    for point in points:
        first.setdefault(point.phase, point)
        last[point.phase] = point
    return [point for point in points if point in (first[point.phase], last[point.phase])]


def _signalled(stages: Stages, stage: str, point: Point, name: str, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    outcome = run_with_fault(trial.command(), trial.log, trial.watched, point, name)
    number = int(SIGNALS[name.split()[0]])
    if not outcome.reached:
        trial.lost("it did not come there", outcome)
    if outcome.code == DONE:  # it came too late to stop anything
        trial.compare()
    elif outcome.code != 128 + number:
        trial.unclear(f"{name} gave another exit code than {128 + number}", outcome)
    elif "Traceback" in outcome.stderr:
        trial.unclear("a traceback", outcome)
    return trial.finish()


def writers(stages: Stages, stage: str, points: list[Point]) -> Iterator[Case]:
    """A second writer comes while the first is at the first point of a phase."""
    # 0 where a stage takes no lock, as it should not be
    locked = next((n for n, point in enumerate(points) if point.call == "flock"), 0)
    named = next(
        (n for n, p in enumerate(points) if p.call == "write" and p.path.endswith(".lock")), 0
    )
    seen: set[str] = set()
    for place, point in enumerate(points):
        if point.phase in seen:
            continue
        seen.add(point.phase)
        check = partial(_second, stages, stage, point, place > locked, place > named)
        yield Case(stage, "two writers", f"a second at {point}", check)


def _finished(trial: Trial) -> bool:
    """Whether the artifact is complete, so that a second run is up to date and needs no lock."""
    with contextlib.suppress(InputError):
        found = read_manifest(trial.output)
        wanted = read_manifest(trial.quiet).fingerprint
        return found.status == "complete" and found.fingerprint == wanted
    return False


def _settled(folder: Path) -> dict[str, bytes | None]:
    """The files once every thread of the first writer waits or computes."""
    before = snapshot(folder)
    while True:
        time.sleep(0.01)
        after = snapshot(folder)
        if after == before:
            return after
        before = after


def _second(
    stages: Stages, stage: str, point: Point, locked: bool, named: bool, folder: Path
) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    first = Running(trial.command(), folder / "first", trial.watched)
    while (here := first.next()) is not None and str(here) != str(point):
        pass
    if here is None:
        trial.lost("it did not come there", first.end())
        return trial.verdict
    before, finished = _settled(trial.watched), _finished(trial)
    second = run(trial.command(), trial.log)
    if locked and not finished:
        if second.code != CONFLICT:
            trial.lost("the second was not turned away", second)
        elif named and f"process {first.process} " not in second.stderr:
            trial.unclear(f"the second does not name process {first.process}", second)
        elif not named and "another process" not in second.stderr:
            trial.unclear("the second does not say that there is another", second)
        trial.untouched(before)
    elif second.code != DONE:
        trial.lost("the second failed, though the first had no lock or was done", second)
    elif not finished:  # else the first may still have what it replaced to remove
        trial.compare()
    outcome = first.end()
    if outcome.code != DONE and (locked or outcome.code != CONFLICT):
        trial.lost("the first failed", outcome)
    different, count = differences(trial.output, trial.quiet)
    trial.verdict.bytes += count
    if different:
        trial.lost("after both: " + "; ".join(different))
    return trial.finish()
