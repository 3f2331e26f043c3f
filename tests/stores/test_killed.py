"""`cola` that writes to a store is killed at random moments; it makes what a quiet run makes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.stores.conftest import Shelf, needs_a_server, same_as_local, stages

pytestmark = needs_a_server
SECONDS = 30.0  # of kills; COLA_KILLS, a number of them, takes as long as it takes


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again(shelf: Shelf, corpus: Path, local: Path) -> None:
    """Every third run has an empty cache, as on another machine."""
    source = random.Random(seed := int(os.environ.get("COLA_SEED", time.time_ns() % 10**6)))
    wanted, kills, begun = int(os.environ.get("COLA_KILLS", "0")), 0, time.monotonic()
    quiet: list[float] = []
    round_ = 0
    while not round_ or (kills < wanted if wanted else time.monotonic() - begun < SECONDS):
        at = f"killed-{round_}"
        for number, command in enumerate(stages(f"s3://shelf/{at}", corpus)):
            spent = time.monotonic() - begun
            for _ in range(3 if wanted or spent < SECONDS else 0):
                cache = {"COLA_CACHE": f"{shelf.environment['COLA_CACHE']}-{kills % 3}-{at}"}
                process = shelf.start(*command, **cache)
                length = quiet[number] if number < len(quiet) else 6.0
                time.sleep(source.uniform(0.1, 1.0) * length)
                process.kill()
                process.communicate()
                kills += process.returncode == -9
            started = time.monotonic()
            shelf.cola(*command)
            if number == len(quiet):
                quiet.append(time.monotonic() - started)
            same_as_local(shelf, f"{at}/{command[command.index('-o') + 1].split('/')[-1]}", local)
        round_ += 1
    print(f"seed {seed}: {kills} kills in {round_} rounds")
    assert kills
