"""Several processes that make parts of one artifact: `--shard I/N` or `auto`, or torchrun."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.artifacts import Output, Writer
from cola_cli.artifacts.lock import STOPPED_SECONDS, Patience, sharing
from cola_cli.artifacts.manifest import MANIFEST_NAME, read_manifest
from cola_cli.artifacts.output import telling_what_is_saved
from cola_cli.artifacts.parts import recorded_indices
from cola_cli.errors import InputError, OutputLocked, UsageError
from cola_cli.machine.launcher import launched, launched_shard
from cola_cli.stages.run import Outcome, Run

if TYPE_CHECKING:
    from cola_cli.machine.processes import World

Shard = tuple[int, int]  # (index from 0, count)
WHOLE: Shard = (0, 1)
POLL_SECONDS = 0.1
FOREIGN_SECONDS = 2.0  # in which the holder of the lock has put its own manifest in place


def parse_shard(text: str | None) -> Shard:
    """`1/4` -> (1, 4), `auto` -> what the launcher says. Raises UsageError."""
    if text is None:
        return WHOLE
    if text == "auto":
        return launched_shard()
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(
            f"--shard {text}: it is not auto, nor I/N with I from 0 to N - 1.", "Try --shard 0/4."
        )
    return int(index), int(count)


def refuse_overwriting(overwrite: bool) -> None:
    """Raise UsageError if a shard was told to overwrite."""
    if overwrite:
        raise UsageError(
            "--overwrite cannot be combined with shards: one would remove another's parts.",
            "Choose another output directory.",
        )


def make_artifact(
    output: Output,
    environment: dict[str, Any],
    run: Run,
    shard: Shard,
    make: Callable[[Collection[int], Shard], None],
    finish: Callable[[Writer], dict[str, Any]],
    begin: Callable[[Writer], None] = lambda writer: None,
    world: World | None = None,
) -> Outcome:
    """Make the parts of a shard, or all parts and commit the artifact.

    make: is told which parts are there, and of which shard to make the others. begin, finish: write what
    comes before and after the parts, the latter gives the statistics. world: processes with a shard each, of
    which the first commits.
    """
    if shard != WHOLE:
        refuse_overwriting(run.overwrite)
        with sharing(output.path), telling_what_is_saved(output.path):
            begin_together(output, environment)
            make(recorded_indices(output.path), shard)
            if world is not None:
                world.wait()
        if world is None or world.size == 1 or not world.leads:
            return Outcome(output.path, True, {"parts": len(recorded_indices(output.path))})
    with output.writing(environment) as writer:
        begin(writer)
        make(writer.parts, WHOLE)
        statistics = finish(writer)
        writer.finish(statistics)
    return Outcome(output.path, True, statistics)


def refuse_sharing(what: str, shard: Shard) -> None:
    """Raise UsageError for something that several processes cannot do together."""
    if shard != WHOLE or launched() is not None:
        raise UsageError(f"{what} is done by one process.", "Run it without shards and torchrun.")


def begin_together(output: Output, environment: dict[str, Any]) -> None:
    """Return once the unfinished artifact of this identity is there, made by whoever takes the lock first.

    Raises OutputConflict when something else lies there, or is being made there.
    """
    foreign, stopped = Patience(FOREIGN_SECONDS), Patience(STOPPED_SECONDS)
    while not (found := has_begun(output, output.path / MANIFEST_NAME)):
        try:
            with output.writing(environment):
                return
        except OutputLocked as error:
            # The holder may just be replacing what a failed run left behind.
            if foreign.is_over(found is False) or stopped.is_over(error.stopped):
                raise
            time.sleep(POLL_SECONDS)


def has_begun(output: Output, begun: Path) -> bool | None:
    """Whether the artifact of this identity has the file; False: one of another identity lies there."""
    try:
        manifest = read_manifest(output.path)
    except InputError:
        return None
    if manifest.fingerprint != output.identity.fingerprint:
        return False
    return True if begun.exists() else None
