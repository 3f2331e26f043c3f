"""Ports of this machine for servers and ranks that tests start."""

from __future__ import annotations

import random
import socket

# Below those that a system gives to connections by itself: one of these that is free now may be gone
# when a later run wants it. Above those that Ray keeps for its workers.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port that nobody listens on now, and that the system gives to nobody unasked."""
    while True:
        port = random.SystemRandom().choice(PORTS)  # workers may seed `random` alike
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
