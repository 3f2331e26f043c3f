"""What cola says of the process it runs in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cola_cli.errors import UsageError
from cola_cli.machine import threads
from cola_cli.machine.threads import choose_threads


def test_the_peak_memory_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    large = bytearray(400 << 20)  # written to, so that this process holds it
    large[::4096] = b"1" * len(large[::4096])
    code = "from cola_cli.machine.threads import peak_memory; print(peak_memory())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 20 < float(shown.stdout) < 200 << 20


VARIABLES = ("COLA_THREADS", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("variables", "requested", "recorded", "chosen"),
    [
        ({"COLA_THREADS": "3"}, 5, 4, "5 threads (--threads)"),
        ({"COLA_THREADS": "3"}, None, 4, "4 threads (as the interrupted run had)"),
        ({"COLA_THREADS": "3", "OMP_NUM_THREADS": "2"}, None, None, "3 threads (COLA_THREADS)"),
        ({"OMP_NUM_THREADS": "2,1"}, None, None, "2 threads (OMP_NUM_THREADS)"),
        ({"OMP_NUM_THREADS": "1"}, None, None, "1 thread (OMP_NUM_THREADS)"),
    ],
)
def test_the_number_of_threads_is_said_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    requested: int | None,
    recorded: int | None,
    chosen: str,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(choose_threads(requested, recorded)) == chosen


def test_without_a_wish_there_is_a_thread_for_each_processor_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "available_cores", lambda: 6)
    assert str(choose_threads()) == "6 threads (the processors at hand)"


def test_a_wish_that_is_no_number_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLA_THREADS", "two")
    with pytest.raises(UsageError, match="COLA_THREADS: 'two'"):
        choose_threads()


SETTLED = """
import os, sys
from cola_cli.machine.threads import prepare_torch
prepare_torch()
assert "torch" not in sys.modules
import torch
print(torch.get_num_threads(), os.environ["GOMP_SPINCOUNT"])
"""


@pytest.mark.parametrize(("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_torch_is_loaded_with_what_was_chosen(given: dict[str, str], spins: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    result = subprocess.run(
        [sys.executable, "-c", SETTLED],
        env=environment | {"COLA_THREADS": "1"} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["1", spins]
