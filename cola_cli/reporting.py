"""What a stage tells while it works. Stages call a Reporter; the command line decides how it looks."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives progress and remarks of a running stage."""

    def start(self, what: str, total: int | None, unit: str, done: int = 0) -> None:
        """Begin a task of `total` units (None: unknown), `done` of them finished by an earlier run."""

    def advance(self, count: int, **metrics: float | str) -> None:
        """`count` more units are done; `metrics` are shown beside the bar, the most important first."""

    def stop(self) -> None:
        """End the current task."""

    def note(self, text: str) -> None:
        """One remark, such as what was chosen and why."""

    def warn(self, text: str) -> None:
        """Something the user should look at."""


class Silent:
    """A Reporter that says nothing (library use, tests)."""

    def start(self, what: str, total: int | None, unit: str, done: int = 0) -> None: ...
    def advance(self, count: int, **metrics: float | str) -> None: ...
    def stop(self) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
