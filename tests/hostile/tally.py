"""Counts of what parsers did with hostile inputs, and what makes a refusal clear."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from cola_cli.errors import ColaError

SENTENCE_LIMIT = 1500  # characters
SECONDS = 20  # of one input; far above what any takes
SHOWN = 20  # crashes that are kept in full


class TooSlow(BaseException):
    """One input kept its parser busy for too long; no handler of errors may take it for one."""


@dataclass
class Tally:
    """What became of the inputs of one parser."""

    parser: str
    tried: int = 0
    accepted: int = 0
    refused: int = 0
    crashed: int = 0
    crashes: list[str] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=dict)  # class of error -> count

    def crash(self, label: str, what: str) -> None:
        """Record an input that brought neither a result nor a clear sentence."""
        self.crashed += 1
        if len(self.crashes) < SHOWN:
            self.crashes.append(f"{self.parser}: {label}: {what}")

    def attempt(
        self,
        label: str,
        parse: Callable[[], Any],
        names: tuple[str, ...],
        expected: object = None,
        exact: bool = False,
    ) -> None:
        """Parse one input. `names`: one of these must be in a refusal. With `exact` an accepted input
        must give what `expected` is."""
        self.tried += 1
        before = signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(SECONDS)
        try:
            result = parse()
        except ColaError as error:
            if fault := unclear(error, names):
                self.crash(label, f"{fault}: {type(error).__name__}: {str(error)[:400]!r}")
            else:
                self.refused += 1
                kind = type(error).__name__
                self.messages[kind] = self.messages.get(kind, 0) + 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-3:]
            steps = " > ".join(f"{Path(step.filename).name}:{step.lineno}" for step in place)
            self.crash(label, f"{type(error).__name__}: {str(error)[:200]!r} at {steps}")
        else:
            if exact and result != expected:
                self.crash(label, f"accepted, but gave {result!r}"[:400])
            else:
                self.accepted += 1
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def add(self, other: Tally) -> None:
        """Count another run of the same parser along."""
        for name in ("tried", "accepted", "refused", "crashed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.crashes += other.crashes
        for kind, count in other.messages.items():
            self.messages[kind] = self.messages.get(kind, 0) + count


def unclear(error: ColaError, names: tuple[str, ...]) -> str:
    """What a refusal lacks, or nothing: the file's name, one line without control characters, a remedy."""
    text = str(error)
    if not any(name in error.problem for name in names):
        return "names no file"
    if not error.remedy:
        return "has no remedy"
    if not text.isprintable():
        return "is no single printable line"
    if len(text) > SENTENCE_LIMIT:
        return f"is {len(text)} characters long"
    return ""


def table(tallies: list[Tally]) -> str:
    """The counts as a Markdown table."""
    lines = [
        "| parser | inputs tried | accepted | refused with a clear message | crashed |",
        "|---|---:|---:|---:|---:|",
    ]
    total = Tally("all")
    for tally in tallies:
        total.add(tally)
    lines += [
        f"| {t.parser} | {t.tried:,} | {t.accepted:,} | {t.refused:,} | {t.crashed:,} |"
        for t in [*tallies, total]
    ]
    return "\n".join(lines)


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {SECONDS} s")
