"""What the processes of one run know of one another: who joined, who failed and why, who went silent.

Every process writes a beat into a store that all of them see, and reads those of the others. One that fails
writes its error there; so the others, whose communication breaks, can name the rank and its error.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from cola_cli.errors import ColaError, Interrupted, PeerFailed
from cola_cli.machine.launcher import Launch
from cola_cli.machine.liveness import state_of

BEAT_SECONDS = 0.5
SILENT_SECONDS = 3.0  # without a beat, after which a process is looked for
GRACE_SECONDS = 15.0  # for the main thread to end by itself when another process has failed
AGAIN = "Run the same command again on all ranks; it goes on from what is saved."
LEFT = "left"


@dataclass(frozen=True)
class Failure:
    """The first failure of any process, as it stands in the store."""

    rank: int
    problem: str
    exit_code: int


class Peers:
    """The processes of a run, as one of them sees the others.

    timeout: seconds for all to join, and for one to be silent before it counts as lost.
    """

    def __init__(self, launch: Launch, timeout: float) -> None:
        self._launch = launch
        self._timeout = timeout
        self._waits = 0
        self._failure: Failure | None = None
        self._failed_at = 0.0
        self._store_lost = False
        self._round_at = time.monotonic()
        self._beats: dict[int, tuple[str, float]] = {}  # rank -> last beat, when it came
        self._stopped = threading.Event()
        self.store = self._connect()
        try:
            self._join()
        except RuntimeError as error:
            lost = "rank 0" if launch.hosts_store else "the launcher"
            raise PeerFailed(f"{lost} stopped while the ranks were joining.", AGAIN) from error
        self._thread = threading.Thread(target=self._run, daemon=True, name="peers")
        self._thread.start()

    # --- joining and leaving ---

    def _connect(self) -> dist.Store:
        launch = self._launch
        wait = timedelta(seconds=self._timeout)
        try:
            server = dist.TCPStore(
                launch.host,
                launch.port,
                launch.size,
                is_master=launch.hosts_store and launch.rank == 0,
                timeout=wait,
                wait_for_workers=False,
            )
        except RuntimeError as error:
            where = f"{launch.host}:{launch.port}"
            if launch.hosts_store and launch.rank == 0:
                raise PeerFailed(
                    f"rank 0 cannot listen at MASTER_PORT {launch.port} ({_first_line(error)}).",
                    "Choose another MASTER_PORT.",
                ) from error
            raise PeerFailed(
                f"rank 0 of {launch.size} did not join at {where} within"
                f" {_minutes(self._timeout)}.",
                "Start every rank, check MASTER_ADDR and MASTER_PORT, or raise the setting timeout.",
            ) from error
        return dist.PrefixStore(f"cola/{launch.attempt}", server)

    def _join(self) -> None:
        launch, store = self._launch, self.store
        store.set(_beat_key(launch.rank), self._beat(0))
        deadline = time.monotonic() + self._timeout
        while missing := [r for r in range(launch.size) if not store.check([_beat_key(r)])]:
            if time.monotonic() > deadline:
                names = ", ".join(map(str, missing))
                raise PeerFailed(
                    f"rank {names} of {launch.size} did not join within {_minutes(self._timeout)}.",
                    "Start every rank, or raise the setting timeout.",
                )
            time.sleep(0.02)
        for rank in range(launch.size):
            self._beats[rank] = store.get(_beat_key(rank)).decode(), time.monotonic()

    def leave(self) -> None:
        """Say that this process is done; whoever serves the store stays until the others are."""
        self.stop()
        with contextlib.suppress(RuntimeError):
            self.store.set(_beat_key(self._launch.rank), LEFT)
            if self._launch.hosts_store and self._launch.rank == 0:
                end = time.monotonic() + SILENT_SECONDS
                while time.monotonic() < end and not self._all_left():
                    time.sleep(0.02)

    def _all_left(self) -> bool:
        keys = [_beat_key(rank) for rank in range(self._launch.size)]
        return all(value.decode() == LEFT for value in self.store.multi_get(keys))

    # --- failing ---

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process ends, unless one failed before; give them time to read it."""
        if isinstance(error, PeerFailed) or self._failure is not None or not self._store_answers():
            return self.stop()
        if isinstance(error, Interrupted):
            name = signal.Signals(error.signal_number).name
            told = {"problem": f"it was interrupted by {name}.", "exit_code": error.exit_code}
        elif isinstance(error, ColaError):
            told = {"problem": error.problem, "exit_code": error.exit_code}
        else:
            problem = f"{type(error).__name__}: {_first_line(error)}"
            told = {"problem": problem, "exit_code": ColaError.exit_code}
        with contextlib.suppress(RuntimeError):
            text = json.dumps(told | {"rank": self._launch.rank})
            self.store.compare_set("failure", "", text)
            end = time.monotonic() + SILENT_SECONDS
            while time.monotonic() < end and self.store.add("read", 0) < self._launch.size - 1:
                time.sleep(0.02)
        return self.stop()

    def failure(self, error: Exception) -> PeerFailed | None:
        """The failure of another process that is behind `error`, if there is one; takes some seconds."""
        if not isinstance(error, RuntimeError):
            return None
        end = time.monotonic() + 2 * SILENT_SECONDS
        while time.monotonic() < end:
            if found := self._known():
                return found
            if lost := self._lost(SILENT_SECONDS, after=0.0):
                time.sleep(2 * BEAT_SECONDS)  # its reason may be on the way
                return self._known() or lost
            time.sleep(0.05)
        text = str(error)
        if isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text:
            return PeerFailed(
                f"the {self._launch.size} ranks lost touch with one another ({_first_line(error)}).",
                AGAIN,
            )
        return None

    def check(self) -> None:
        """Raise PeerFailed when another process has failed, is dead, or silent for longer than it may be."""
        if found := self._known() or self._lost(self._timeout):
            raise found

    def _known(self) -> PeerFailed | None:
        failure = self._failure
        if failure is None or failure.rank == self._launch.rank:
            return None
        found = PeerFailed(f"rank {failure.rank} stopped: {failure.problem}", AGAIN)
        found.exit_code = failure.exit_code
        return found

    def _lost(self, silence: float, after: float = SILENT_SECONDS) -> PeerFailed | None:
        """The error when a process is dead (looked at `after` so many seconds), or silent for `silence`."""
        now = time.monotonic()
        if self._launch.hosts_store and self._launch.rank:
            if self._store_lost or now - self._round_at > silence:
                return self._without_answer(0)
        elif self._store_lost or now - self._round_at > SILENT_SECONDS:
            return None  # nothing is known of the others
        for rank, (beat, since) in self._beats.items():
            if rank == self._launch.rank or beat == LEFT or now - since < after:
                continue
            if self._state(rank) == "dead" or now - since >= silence:
                return self._without_answer(rank)
        return None

    def _state(self, rank: int) -> str:
        beat, _ = self._beats[rank]
        if beat == LEFT:
            return "unknown"
        _, process, host = beat.split(" ", 2)
        return state_of(int(process), host)

    def _without_answer(self, rank: int) -> PeerFailed:
        why = {
            "dead": "was killed",
            "stopped": "no longer answers: it is stopped",
            "unknown": "no longer answers: it was killed, or hangs",
        }[self._state(rank)]
        return PeerFailed(f"rank {rank} of {self._launch.size} {why}.", AGAIN)

    # --- waiting ---

    def wait(self) -> None:
        """Return once every process is here, as long as all live.

        Raises PeerFailed when one does not. Not a collective, which would limit how long the others may take.
        """
        self._waits += 1
        key = f"wait/{self._waits}"
        try:
            if self.store.add(key, 1) == self._launch.size:
                self.store.set(f"{key}/all", "")
        except RuntimeError:
            return self._wait_without_store()
        while True:
            try:
                self.store.wait([f"{key}/all"], timedelta(seconds=1))
                return None
            except RuntimeError as error:
                self.check()
                if not isinstance(error, dist.DistStoreError):
                    return self._wait_without_store()

    def _wait_without_store(self) -> None:
        # The launcher, which served the store, is gone; the processes go on.
        dist.barrier()

    # --- the thread ---

    def _run(self) -> None:
        try:
            store: Any = self.store.clone()  # type: ignore[attr-defined]
            number = 0
            while not self._stopped.wait(BEAT_SECONDS):
                number += 1
                self._round(store, number)
        except RuntimeError:
            self._store_lost = True

    def _round(self, store: dist.Store, number: int) -> None:
        launch = self._launch
        store.set(_beat_key(launch.rank), self._beat(number))
        beats = store.multi_get([_beat_key(rank) for rank in range(launch.size)])
        now = time.monotonic()
        for rank, value in enumerate(beats):
            beat = value.decode()
            if rank not in self._beats or self._beats[rank][0] != beat:
                self._beats[rank] = beat, now
        if self._failure is None and store.check(["failure"]):
            self._failure = Failure(**json.loads(store.get("failure")))
            self._failed_at = now
            store.add("read", 1)
        self._round_at = now
        self._end_if_stuck(now)

    def _end_if_stuck(self, now: float) -> None:
        """End this process when the run is over and its main thread still waits for an answer."""
        late = self._failure is not None and now - self._failed_at > GRACE_SECONDS
        error = self._known() if late else self._lost(self._timeout + GRACE_SECONDS)
        if error is not None and (late or "was killed." not in error.problem):
            print(
                f"cola: error: {error.problem}\n      {error.remedy}", file=sys.stderr, flush=True
            )
            os._exit(error.exit_code)

    def _beat(self, number: int) -> str:
        return f"{number} {os.getpid()} {socket.gethostname()}"

    def _store_answers(self) -> bool:
        return not self._store_lost and time.monotonic() - self._round_at < SILENT_SECONDS

    def stop(self) -> None:
        """End the thread, which would abort the process if it came back from the store at shutdown."""
        self._stopped.set()
        self._thread.join(SILENT_SECONDS)


def _beat_key(rank: int) -> str:
    return f"beat/{rank}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} minute{'' if seconds == 60 else 's'}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
