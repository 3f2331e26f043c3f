"""The writer's lock in an object store: an object that names its holder until a time, which is renewed.

It is taken and renewed by conditional puts. It stays when it is released, without a holder, as the lock on a
disk does. A dead holder's lease runs out; on the same machine its death is seen at once.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_cli.artifacts import mirror
from cola_cli.artifacts.reading import parse_json, shown
from cola_cli.artifacts.stores import Changed, Missing, Place
from cola_cli.errors import ColaError, OutputConflict, OutputLocked
from cola_cli.machine.liveness import state_of

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
POLL_SECONDS = 0.3
SKEW_SECONDS = 30.0  # by which clocks of two machines may differ


class Lease:
    """The lock of the artifact whose copy is at `directory`; None as `place` where it lies on a disk."""

    def __init__(self, directory: Path, holder: dict[str, Any]) -> None:
        self.directory, self._holder = directory, holder
        self.place = Place.of(directory / ".lock")
        self._tag = ""
        self._valid_until = 0.0
        self._ended = threading.Event()
        self._one = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @contextlib.contextmanager
    def held(self, deadline: float) -> Iterator[None]:
        """Hold it. Raises OutputLocked, naming the holder, when another live process has it at `deadline`."""
        if self.place is None:
            yield
            return
        while True:
            try:
                self._take(self.place)
                break
            except OutputLocked:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_SECONDS)
        before = mirror.guards.get(self.directory)
        mirror.guards[self.directory] = self.require
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()
            if before is None:
                mirror.guards.pop(self.directory, None)
            with contextlib.suppress(ColaError, Changed, Missing):
                self.place.put(_text({}), self._tag)

    def require(self) -> None:
        """Raise OutputConflict unless the lease is ours still."""
        if time.monotonic() > self._valid_until:
            self._renew()

    def _take(self, place: Place) -> None:
        while True:
            try:
                text, tag = place.get()
            except Missing:
                text, tag = b"", ""
            if text:
                self._require_free(place, text, tag)
            try:
                self._put(tag)
            except Changed:
                continue  # another was faster
            if not tag:
                self._first(place)
            return

    def _first(self, place: Place) -> None:
        """See once an artifact whether the store holds to conditions."""
        place.require_conditional_puts()
        self._tag = place.head().tag

    def _require_free(self, place: Place, text: bytes, tag: str) -> None:
        """Raise OutputLocked unless the lease was released, ran out, or is that of a dead process."""
        held = _Held(text)
        if held.is_free or held.is_dead:
            return
        left = held.until - time.time()
        if left < -SKEW_SECONDS:
            # our clock may be ahead: who lives renews it meanwhile
            time.sleep(RENEW_SECONDS + 5)
            if place.head().tag == tag:
                return
            raise OutputLocked(
                f"{self.directory} is being written by {held.words}, and the clock of one machine is off"
                f" by {-left:.0f} s.",
                "Set the clocks; wait for it, stop it, or choose another output.",
            )
        off = f"; the clock of one machine is off by {left - LEASE_SECONDS:.0f} s"
        raise OutputLocked(
            f"{self.directory} is being written by {held.words}"
            f"{off if left > LEASE_SECONDS + SKEW_SECONDS else ''}.",
            f"Wait for it or stop it, or choose another output. If it is dead, its lease runs out in"
            f" {max(0.0, left + SKEW_SECONDS):.0f} s.",
        )

    def _put(self, tag: str) -> None:
        assert self.place is not None
        begun = time.monotonic()
        self._tag = self.place.put(_text(self._holder, time.time() + LEASE_SECONDS), tag)
        self._valid_until = begun + LEASE_SECONDS

    def _renew(self) -> None:
        with self._one:
            try:
                self._put(self._tag)
            except Changed:
                assert self.place is not None
                self._valid_until = 0.0
                text, tag = self.place.get()
                if _Held(text).holder == self._holder:  # an answer was lost
                    self._tag = tag
                    return
                raise OutputConflict(
                    f"{self.directory} was taken over by {_Held(text).words}: this process was silent for"
                    " longer than its lease.",
                    "Run the command again once that process has ended.",
                ) from None

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with contextlib.suppress(ColaError, Missing):  # told by who writes next
                self._renew()


def holder_in_store(directory: Path) -> str | None:
    """Who writes to the artifact whose copy is at `directory`, as far as the lease says; or None."""
    place = Place.of(directory / ".lock")
    if place is None:
        return None
    try:
        held = _Held(place.get()[0])
    except Missing:
        return None
    gone = held.is_free or held.is_dead or held.until < time.time() - SKEW_SECONDS
    return None if gone else held.words


class _Held:
    """What the object of a lease says."""

    def __init__(self, text: bytes) -> None:
        self.holder: Any = {}
        self.until, self.words, self.is_dead = 0.0, "another process", False
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found = parse_json(text)
            self.until, self.holder = float(found["until"]), found["holder"]
            about = self.holder
            self.is_dead = state_of(int(about["pid"]), str(about["host"])) == "dead"
            since = f" since {about['since']} ({about['command']})"
            self.words = shown(f"process {about['pid']} on {about['host']}{since}", 1000)

    @property
    def is_free(self) -> bool:
        return not self.holder


def _text(holder: dict[str, Any], until: float = 0.0) -> bytes:
    return json.dumps({"holder": holder, "until": until}).encode()
