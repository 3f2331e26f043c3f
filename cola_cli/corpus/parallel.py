"""Chunks of a corpus handed to worker processes, a few at a time."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool

from cola_cli.corpus.chunks import Chunk
from cola_cli.errors import ColaError


def run_all(
    work: Callable[[Chunk], None],
    chunks: Iterator[Chunk],
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Do `work` on every chunk, in worker processes if there are at least two chunks.

    `work` must be picklable; `advance` is told the bytes that were read for each finished chunk.
    Raises whatever `work` raises, and ColaError when a worker is killed.
    """
    first = list(itertools.islice(chunks, 2))
    if workers == 1 or len(first) < 2:
        for chunk in itertools.chain(first, chunks):
            work(chunk)
            advance(chunk.read)
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
            for chunk in itertools.chain(first, chunks):
                waiting[pool.submit(work, chunk)] = chunk.read
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
