"""One fault, one verdict: what a case is and how an artifact is judged after it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.points import Point
from tests.faults.processes import Outcome, run
from tests.faults.stages import FOLDER, Stages, differences, snapshot

DONE, CONFLICT, DAMAGED = 0, 3, 5
LEFT_OVER = re.compile(r"\.tmp")


@dataclass
class Verdict:
    """What came of a case.

    `lost`: work lost, other bytes than the quiet run's, harm that nobody told of, a run that cannot go on,
    something touched that is not to be. `unclear`: nothing lost, but no sentence that names the file, a
    temporary file left behind until the next run, or another exit code than the promised one.
    """

    lost: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    resumed: int = 0  # runs that went on after the fault
    bytes: int = 0  # compared with the quiet run


@dataclass(frozen=True)
class Case:
    """A fault to try. `check` gets an empty folder."""

    stage: str
    kind: str  # the column of the table
    name: str
    check: Callable[[Path], Verdict]

    def __str__(self) -> str:
        return f"{self.stage}: {self.kind}: {self.name}"


@dataclass
class Trial:
    """A stage run in a folder of its own, beside the quiet artifacts."""

    stages: Stages
    stage: str
    folder: Path
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def watched(self) -> Path:
        """The folder that holds the output and nothing else."""
        return self.folder / "w"

    @property
    def output(self) -> Path:
        return self.watched / FOLDER[self.stage]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def quiet(self) -> Path:
        """The artifact of an undisturbed run."""
        return self.stages.home / FOLDER[self.stage]

    def command(self, *more: str, **changes: object) -> list[str]:
        return [*self.stages.command(self.stage, self.output, **changes), *more]

    def begin(self) -> Trial:
        self.watched.mkdir()
        self.stages.lay(self.stage, self.output)
        return self

    def lost(self, text: str, outcome: Outcome | None = None) -> None:
        """Note that something is lost or silently wrong."""
        self.verdict.lost.append(text + _words(outcome))

    def unclear(self, text: str, outcome: Outcome | None = None) -> None:
        """Note that nothing is lost, but cola did not say what it should."""
        self.verdict.unclear.append(text + _words(outcome))

    def run(self, *more: str, **changes: object) -> Outcome:
        return run(self.command(*more, **changes), self.log)

    def finish(self, *more: str) -> Verdict:
        """Run again undisturbed: it must end well, in the bytes of the quiet run."""
        outcome = self.run(*more)
        self.verdict.resumed += 1
        if outcome.code != DONE:
            self.lost("the run after it failed", outcome)
        else:
            self.compare()
        return self.verdict

    def compare(self) -> None:
        """The artifact must be that of the quiet run."""
        different, count = differences(self.output, self.quiet)
        self.verdict.bytes += count
        if different:
            self.lost("not the quiet run's: " + "; ".join(different))

    def untouched(self, before: dict[str, bytes | None]) -> None:
        """Nothing in the folder may have changed."""
        after = snapshot(self.watched)
        changed = sorted(
            n for n in before.keys() | after.keys() if before.get(n, 0) != after.get(n, 0)
        )
        if changed:
            self.lost("touched: " + ", ".join(changed))

    def said(self, outcome: Outcome, path: Path) -> None:
        """The message must be a sentence that names the path, or a file in it."""
        text = outcome.stderr + outcome.stdout
        if "Traceback" in text or "a fault in cola" in text:
            self.unclear("no clear message", outcome)
        elif str(path) not in text:
            self.unclear(f"the message does not name {path.name}", outcome)

    def left_overs(self) -> list[str]:
        """Temporary files in the output."""
        return sorted(name for name in snapshot(self.watched) if LEFT_OVER.search(name))


def named_path(trial: Trial, point: Point) -> Path:
    """What a message on a failure at `point` must name: the file that was to be made, or its folder."""
    path = trial.watched / point.path
    if path.name == ".tmp":  # a name that safetensors chose
        return path.parent
    return path.with_name(path.name.removesuffix(".tmp"))


def _words(outcome: Outcome | None) -> str:
    return f" [exit {outcome.code}: {outcome.stderr.strip()[-400:]}]" if outcome else ""
