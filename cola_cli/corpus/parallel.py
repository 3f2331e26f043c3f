"""Pieces and chunks of a corpus handed to worker processes, a few at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from cola_cli.errors import ColaError


class Sized(Protocol):
    """A piece of work of so many bytes."""

    @property
    def bytes(self) -> int:
        """For the progress bar."""
        ...


Work = TypeVar("Work", bound=Sized)


def run_all(
    work: Callable[[Work], None],
    items: Iterable[Work],
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Do `work` on every item, each begun before the next is asked for, in worker processes if many.

    `work` must be picklable; `advance` is told the bytes of each finished item.
    Raises whatever `work` raises, and ColaError when a worker is killed.
    """
    if workers == 1:
        for item in items:
            work(item)
            advance(item.bytes)
        return
    # spawn: forking a process that has threads (tokenizers, pyarrow) can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        waiting: dict[Future[None], int] = {}

        def settle(futures: Iterable[Future[None]]) -> None:
            for future in futures:
                future.result()
                advance(waiting.pop(future))

        try:
            for item in items:
                waiting[pool.submit(work, item)] = item.bytes
                if len(waiting) > 2 * workers:
                    settle(wait(waiting, return_when=FIRST_COMPLETED).done)
            settle(as_completed(list(waiting)))
        except BrokenProcessPool as error:
            raise ColaError(
                "a tokenizing process was killed, perhaps because memory ran out.",
                "Run the same command again with fewer --workers; what is finished is kept.",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one chunk a process is parallel enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is killed: it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
