"""`cola verify`: every byte of artifacts read again, and damage dropped so that it is made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cola_cli.artifacts.verify import Verification, find_artifacts, repair, verify
from cola_cli.reporting import Reporter
from cola_cli.stages.status import next_step


@dataclass(frozen=True)
class Verified:
    """The results of all artifacts; what was dropped of them, and the commands that make it again."""

    results: list[Verification]
    dropped: list[str]
    again: list[str]


def verify_artifacts(paths: Sequence[Path], repairing: bool, reporter: Reporter) -> Verified:
    """Verify every artifact at or below `paths`, and repair those that are damaged if `repairing`."""
    results = []
    for directory in (found for path in paths for found in find_artifacts(path)):
        reporter.start(f"verify {directory}", None, "B")
        results.append(verify(directory, reporter.advance))
        reporter.stop()
    dropped: list[str] = []
    again: list[str] = []
    for result in results if repairing else ():
        if result.findings and (names := repair(result.directory)):
            dropped += [f"{result.directory}/{name}" for name in names]
            again.append(next_step(result.directory))
    return Verified(results, dropped, again)
