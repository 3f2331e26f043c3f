"""Whether another process lives."""

from __future__ import annotations

import os
import socket
from typing import Literal

STATES: dict[str, Literal["dead", "stopped"]] = {
    "Z": "dead", "X": "dead", "T": "stopped", "t": "stopped",
}  # fmt: skip


def state_of(process: int, host: str) -> Literal["dead", "stopped", "unknown"]:
    """Of a process: dead, stopped by a signal, or unknown when it lives or is on another machine."""
    if host != socket.gethostname():
        return "unknown"
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as stream:
            letter = stream.read().rpartition(")")[2].split()[0]
    except (ProcessLookupError, OverflowError):
        return "dead"
    except OSError:
        return "unknown"
    return STATES.get(letter, "unknown")
