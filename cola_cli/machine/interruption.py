"""Signals that ask a stage to stop: the first stops it at the next safe point, a second one later at once.

Ctrl-C, SIGTERM, a closed terminal (SIGHUP), and the warnings of batch systems before the time is up (SIGUSR1,
SIGUSR2). Files are written atomically, so outside training any moment is a safe point and the signal raises
Interrupted on the spot; where Python drops exceptions (`__del__`, callbacks of weak references) it is sent
again. Inside `deferred()` (a training step) the signal is only remembered, and the loop asks `requested`
between steps, saves, and raises.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from cola_cli.errors import Interrupted

# Under torchrun one Ctrl-C arrives twice; a second signal counts only after this many seconds.
SECOND_AFTER = 1.0
AGAIN_AFTER = 0.01  # seconds until a signal whose exception was dropped is sent again
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)

_received: int | None = None
_received_at = 0.0
_deferrals = 0
_commands = 0  # one inside another: a study runs the commands of its stages
_report_dropped = sys.unraisablehook


def install() -> None:
    """A command begins: handle the signals from now on (main thread only), except those that are ignored, as
    `nohup` ignores SIGHUP."""
    global _commands
    _commands += 1
    sys.unraisablehook = _on_dropped
    for number in SIGNALS:
        if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def ignore() -> None:
    """A command is over: after the outermost, a signal must not turn its exit code into a traceback."""
    global _commands
    _commands -= 1
    if _commands:
        return
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def requested() -> int | None:
    """The number of the signal received, or None."""
    return _received


def check() -> None:
    """Raise Interrupted when a signal was received."""
    if _received is not None:
        raise Interrupted(_received)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within this block a signal is remembered instead of raised; the block polls `requested`."""
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1


@contextlib.contextmanager
def immediate() -> Iterator[None]:
    """Within this block, inside `deferred`, a signal raises on the spot again, also one received before."""
    global _deferrals
    deferrals, _deferrals = _deferrals, 0
    try:
        check()
        yield
    finally:
        _deferrals = deferrals


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    if _received is not None:
        # A batch system warns by SIGUSR1 and sends SIGTERM later, while the run is being saved.
        meant = number in (signal.SIGINT, _received)
        if meant and time.monotonic() - _received_at > SECOND_AFTER:
            os._exit(128 + number)
        return
    _received, _received_at = number, time.monotonic()
    if not _deferrals:
        raise Interrupted(number)


def _on_dropped(dropped: Any) -> None:
    """Python's hook for exceptions that cannot be raised where they occur."""
    if isinstance(dropped.exc_value, Interrupted):
        number = dropped.exc_value.signal_number
        threading.Timer(AGAIN_AFTER, _send_again, (number,)).start()
    else:
        _report_dropped(dropped)


def _send_again(number: int) -> None:
    global _received
    _received = None
    os.kill(os.getpid(), number)
