"""Ranks end together, soon, and say which of them failed and why."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cola_cli.errors import UsageError
from cola_cli.machine.launcher import Launch, launched
from tests.ports import free_port
from tests.stages.ranks import environment, start

TIMEOUT = 0.15  # minutes
# Ranks add numbers; the last one then meets its fate.
PROGRAM = f"""
import os, signal, sys, time
import typer
from cola_cli.cli.console import errors_shown
from cola_cli.errors import DamagedArtifact
from cola_cli.machine import interruption
from cola_cli.machine.processes import joined

fate, where = sys.argv[1:]
if fate == "absent" and os.environ["RANK"] == where:
    sys.exit(0)
def main():
    with errors_shown(False):
        interruption.install()
        with joined("cpu", {TIMEOUT}) as world:
            assert world.largest(world.rank) == [world.size - 1]
            if world.rank == int(where):
                if fate in ("SIGKILL", "SIGSTOP", "SIGHUP"):
                    os.kill(os.getpid(), getattr(signal, fate))
                if fate == "damage":
                    raise DamagedArtifact("parts/00000.parquet is damaged.", "Restore it.")
                if fate == "fault":
                    raise ValueError("a fault of its own")
                if fate == "late":
                    time.sleep(60 * {TIMEOUT} + 2)
            if fate in ("waiting", "late"):
                world.wait()
            for _ in range(3):
                world.largest(world.rank)
            if fate == "together":
                raise DamagedArtifact("parts/00000.parquet is damaged.", "Restore it.")
try:
    main()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""
# Says when it has come and waits for others.
JOINING = """
import sys
import typer
from cola_cli.cli.console import errors_shown
from cola_cli.machine import peers, processes
connect = peers.Peers._connect
def telling(self):
    store = connect(self)
    print("joining", flush=True)
    return store
peers.Peers._connect = telling
try:
    with errors_shown(False), processes.joined("cpu", 1.0):
        pass
except typer.Exit as end:
    sys.exit(end.exit_code)
"""
# A run ends by what is not an Exception, and the process goes on.
GONE = """
import threading
from cola_cli.machine.processes import joined
class Gone(BaseException):
    pass
try:
    with joined("cpu", 1.0) as world:
        world.wait()
        raise Gone
except Gone:
    assert not [one for one in threading.enumerate() if one.name == "peers"]
"""
# fate -> exit code and words of the others, by the rank that it meets
FATES = {
    "SIGKILL": (7, "rank {} of 2"),
    "SIGSTOP": (7, "rank {} of 2 no longer answers: it is stopped"),
    "SIGHUP": (129, "rank {} stopped: it was interrupted by SIGHUP"),
    "absent": (7, "rank {} of 2 did not join"),
    "damage": (5, "rank {} stopped: parts/00000.parquet is damaged."),
    "fault": (1, "rank {} stopped: ValueError: a fault of its own"),
}


def outcomes(fate: str, where: int, size: int = 2) -> list[tuple[int, str, float]]:
    """Exit code, stderr and seconds of each rank; a stopped one is killed when the others are gone."""
    begin = time.monotonic()
    ranks = start([fate, str(where)], size, ["-c", PROGRAM])
    found: dict[int, tuple[int, str, float]] = {}
    for rank, process in sorted(enumerate(ranks), key=lambda pair: pair[0] == where):
        if fate == "SIGSTOP" and rank == where:
            process.kill()
        told = process.communicate()[1]
        found[rank] = process.returncode, told, time.monotonic() - begin
    return [found[rank] for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "where"),
    [(fate, 1) for fate in FATES] + [("SIGKILL", 0), ("SIGSTOP", 0), ("absent", 0), ("damage", 0)],
)
def test_the_others_name_the_rank_and_its_error(fate: str, where: int) -> None:
    code, words = FATES[fate]
    other = outcomes(fate, where)[1 - where]
    assert other[0] == code, other
    assert words.format(where) in other[1]
    assert "a fault in cola" not in other[1]
    assert "Traceback" not in other[1]
    assert other[2] < 60 * TIMEOUT + 25


@pytest.mark.slow
def test_one_that_is_killed_while_all_join_is_named() -> None:
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", JOINING],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment(rank, 3, port),
        )
        for rank in (0, 1)  # the third never comes
    ]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "joining\n"
    ranks[0].kill()
    told = ranks[1].communicate()[1]
    ranks[0].communicate()
    assert ranks[1].returncode == 7, told
    assert "rank 0 stopped while the ranks were joining" in told


@pytest.mark.slow
def test_of_three_ranks_both_others_name_the_one_that_failed() -> None:
    for rank, (code, told, _) in enumerate(outcomes("damage", 2, 3)[:2]):
        assert code == 5, (rank, told)
        assert "rank 2 stopped: parts/00000.parquet is damaged." in told


@pytest.mark.slow
def test_one_that_is_late_but_alive_is_waited_for() -> None:
    assert [code for code, _, _ in outcomes("late", 1)] == [0, 0]


@pytest.mark.slow
def test_however_a_run_ends_nothing_of_it_watches_the_others_after() -> None:
    ranks = start([], 2, ["-c", GONE])
    told = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told


def test_an_error_of_all_is_told_by_each() -> None:
    for code, told, _ in outcomes("together", 1):
        assert code == 5
        assert "parts/00000.parquet is damaged." in told


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a launcher."""
    for name in (
        *WHOLE,
        "LOCAL_RANK",
        "TORCHELASTIC_USE_AGENT_STORE",
        "TORCHELASTIC_RESTART_COUNT",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_place_among_others_is_read(variables: pytest.MonkeyPatch) -> None:
    assert launched() is None
    variables.setenv("WORLD_SIZE", "1")
    assert launched() is None
    for name, value in WHOLE.items():
        variables.setenv(name, value)
    assert launched() == Launch(1, 2, 0, "here", 29500, True, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RANK": None}, "RANK is not set"),
        ({"RANK": ""}, "RANK is empty"),
        ({"RANK": "one"}, "RANK: 'one'"),
        ({"RANK": "-1"}, "RANK: '-1'"),
        ({"RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is empty"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: '0'"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT: 'http'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: '99999'"),
        ({"RANK": "9" * 5000}, "RANK: '999"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK: 'x'"),
    ],
)
def test_half_set_variables_of_a_launcher_are_named(
    variables: pytest.MonkeyPatch, changes: dict[str, str | None], named: str
) -> None:
    for name, value in (WHOLE | changes).items():
        if value is not None:
            variables.setenv(name, value)
    with pytest.raises(UsageError) as refused:
        launched()
    assert named in refused.value.problem


def test_left_over_variables_are_named_by_every_command_that_has_ranks(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("Anna sees the boat.")
    command = [sys.executable, "-m", "cola_cli", "tokenize", str(tmp_path / "corpus.txt")]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "tokens")],
        env=os.environ | {"WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "WORLD_SIZE is set, but variable RANK is not set" in done.stderr
