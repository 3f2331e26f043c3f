"""A signal is never lost, wherever the program is when it comes."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time, weakref
from cola_cli.errors import Interrupted
from cola_cli.machine import interruption

def send(*_):
    os.kill(os.getpid(), signal.SIGTERM)

class Thing:
    if sys.argv[1] == "__del__":
        __del__ = send

thing = Thing()
reference = weakref.ref(thing, send if sys.argv[1] == "callback" else None)
interruption.install()
try:
    if sys.argv[2] == "deferred":
        with interruption.deferred():
            with interruption.immediate():
                del thing
            while interruption.requested() is None:
                time.sleep(0.01)
        interruption.check()
    else:
        del thing
        time.sleep(60)
except Interrupted as error:
    print("interrupted by", error.signal_number)
"""


@pytest.mark.parametrize("place", ["__del__", "callback"])
@pytest.mark.parametrize("way", ["at once", "deferred"])
def test_a_signal_that_comes_where_exceptions_are_dropped_is_not_lost(place: str, way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, place, way], capture_output=True, text=True
    )
    assert done.stdout == "interrupted by 15\n", done.stderr
    assert not done.stderr
