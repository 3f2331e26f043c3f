"""Several processes that make parts of one artifact: `--shard I/N`, or torchrun."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cola_cli.artifacts import Output, Writer
from cola_cli.errors import OutputConflict, UsageError

Shard = tuple[int, int]  # (index from 0, count)
WHOLE: Shard = (0, 1)
POLL_SECONDS = 0.1


def parse_shard(text: str | None) -> Shard:
    """`1/4` -> (1, 4). Raises UsageError."""
    if text is None:
        return WHOLE
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(
            f"--shard {text}: it is not I/N with I from 0 to N - 1.", "Try --shard 0/4."
        )
    return int(index), int(count)


def refuse_overwriting(overwrite: bool) -> None:
    """Raise UsageError if a shard was told to overwrite."""
    if overwrite:
        raise UsageError(
            "--overwrite and shards exclude each other: one would remove another's parts.",
            "Remove the output directory first.",
        )


def begin_together(
    output: Output,
    environment: dict[str, Any],
    begun: Path,
    make: Callable[[Writer], None] = lambda writer: None,
) -> None:
    """Return once the unfinished artifact has the file `begun`.

    The first process to take the lock calls `make`; the others wait, and one of them takes over if it dies.
    """
    while not begun.exists():
        try:
            with output.writing(environment) as writer:
                make(writer)
                return
        except OutputConflict:
            time.sleep(POLL_SECONDS)
