"""Places in the caches, each held by one row at a time; the lowest free one is taken first."""

from __future__ import annotations

import heapq


class Slots:
    """`size` places, counted and never listed: a batch size may be any number."""

    def __init__(self, size: int) -> None:
        self.free = size
        self._unused = 0  # the lowest place that was never taken
        self._returned: list[int] = []

    def take(self) -> int:
        """The lowest free place."""
        self.free -= 1
        if self._returned:
            return heapq.heappop(self._returned)
        self._unused += 1
        return self._unused - 1

    def give_back(self, slot: int) -> None:
        """Make a place free again."""
        self.free += 1
        heapq.heappush(self._returned, slot)
