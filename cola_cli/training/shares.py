"""A batch on a CPU is cut into shares, and threads compute shares side by side.

Two threads in one operation meet at its end, thousands of times a step, and wait whenever another process has
one of the cores. Threads with a share each meet once a step. The cut depends on the batch alone and gradients
are added in the order of the shares, so the bytes do not depend on the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from cola_cli.settings.training import Train

# A share has at least so many tokens if the batch has. Fewer would cost more in small operations than they
# gain; more would leave the cores of a common machine without work in a small batch.
SHARE_TOKENS = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shares:
    """How a process cuts its batches.

    tokens: of a share, at least one sequence; 0: micro-batches one after the other, each on all threads.
    """

    tokens: int
    threads: int

    @classmethod
    def chosen(
        cls, train: Train, threads: int, device: str, processes: int, recorded: Mapping[str, Any]
    ) -> Shares:
        """Shares for one process on a CPU, unless compiled; an interrupted run goes on as it began.

        recorded: the environment of the interrupted run, empty for a new one.
        """
        if device != "cpu" or processes > 1 or train.compile:
            return cls(0, threads)
        return cls(recorded.get("share_tokens", 0) if recorded else SHARE_TOKENS, threads)

    def rows(self, train: Train, processes: int, length: int) -> int:
        """Sequences of `length` tokens that are computed together."""
        if not self.tokens:
            return train.micro_batch or -(-train.batch_size // processes)
        return min(max(1, self.tokens // length), train.batch_size)

    def at_once(self, train: Train, length: int) -> int:
        """Shares computed at once, which hold at most train.micro_batch sequences; 0: batches are not cut."""
        if not self.tokens:
            return 0
        rows = self.rows(train, 1, length)
        most = train.micro_batch or train.batch_size
        return max(1, min(self.threads, most // rows))


class Workers:
    """`count` threads that compute side by side; torch has one thread in each, and in the calling thread.

    0: the calling thread computes, with the threads that torch has.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        import torch

        self._before = torch.get_num_threads()
        if self.count:
            torch.set_num_threads(1)  # of operations begun on this thread
        if self.count > 1:
            self._pool = ThreadPoolExecutor(
                self.count, "share", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import torch

        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        torch.set_num_threads(self._before)

    def each(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[Result, None, None]:
        """What `work` makes of each item, in their order; at most `count` + 1 are begun and not yet taken.

        Raises what `work` raised, after what was begun has ended.
        """
        if self._pool is None:
            yield from map(work, items)
            return
        pool, left = self._pool, iter(items)
        ahead: deque[Future[Result]] = deque()
        try:
            while True:
                begun = islice(left, self.count + 1 - len(ahead))
                ahead.extend(pool.submit(work, item) for item in begun)
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
            wait(ahead)
