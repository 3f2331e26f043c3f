"""`--on`: an engine runs a command as shards in warm workers; the command itself then completes them."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cola_cli.artifacts.artifact import is_artifact
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.artifacts.output import telling_what_is_saved
from cola_cli.cli.console import as_failure
from cola_cli.errors import ColaError, InputError, Interrupted, UsageError
from cola_cli.machine import interruption
from cola_cli.machine.fleet import fleet, require_engine
from cola_cli.machine.launcher import launched
from cola_cli.reporting import Reporter
from cola_cli.stages.shards import refuse_overwriting

FEWEST = 2  # shards: one alone would be the whole
OWN = "COLA_"  # variables that are given to the workers, as settings may be among them
WARNING = "warning: "


class Told(NamedTuple):
    """What a shard says when it ends."""

    warnings: list[str]
    failure: ColaError | Interrupted | None = None
    trace: str = ""


def make_shards(command: str, asked: Mapping[str, Any], report: Reporter) -> None:
    """Have the parts of an artifact made in shards, unless it is finished.

    command: `module:name` of the function. asked: its parameters, as the command line gives them. Raises the
    error of the first shard that fails, with its number, and what `machine.fleet.fleet` raises.
    """
    require_engine(asked["on"])
    refuse_overwriting(asked["overwrite"])
    if asked["shard"] is not None or launched() is not None:
        raise UsageError(
            "--on makes the shards itself.", "Drop --shard, COLA_SHARD and torchrun, or drop --on."
        )
    output: Path = asked["output"]
    if is_artifact(output) and read_manifest(output).status == "complete":
        return
    cpus = asked.get("workers") or asked.get("threads") or 1
    with fleet(asked["on"]) as engine:
        gpus = min(1, engine.count("GPU")) if asked.get("device", "cpu") != "cpu" else 0
        fitting = engine.count("GPU") if gpus else engine.count("CPU") // cpus
        count = asked["shards"] or max(FEWEST, fitting)
        own = dict(asked) | {"on": None, "shards": None, "quiet": False}
        if not fitting:
            raise UsageError(
                f"the cluster has fewer than the {cpus} processors of a shard.",
                "Give fewer --workers or --threads.",
            )
        if "workers" in own:
            own["workers"] = cpus
        variables = {name: value for name, value in os.environ.items() if name.startswith(OWN)}
        tasks = [
            (command, own | {"shard": f"{n}/{count}"}, sys.argv, Path.cwd(), variables)
            for n in range(count)
        ]
        report.start("shards", count, "shards")
        warned = set[str]()
        with telling_what_is_saved(output), contextlib.closing(
            engine.run(make_shard, tasks, cpus, gpus)
        ) as results:  # fmt: skip
            for number, told in results:
                if isinstance(told, ColaError):
                    told = Told([], told)
                for warning in told.warnings:
                    if warning not in warned:
                        warned.add(warning)
                        report.warn(warning)
                if told.failure is not None:
                    raise _of_shard(f"{number}/{count}", told)
                report.advance(1)
        report.stop()
    interruption.check()  # of a signal that came after the last shard


def _of_shard(shard: str, told: Told) -> ColaError:
    assert isinstance(told.failure, ColaError)
    error = type(told.failure)(f"shard {shard}: {told.failure.problem}", told.failure.remedy)
    if told.trace:
        error.add_note(f"In the worker:\n{told.trace}")  # shown with --debug
    return error


def make_shard(
    command: str,
    asked: dict[str, Any],
    argv: list[str],
    folder: Path,
    variables: dict[str, str],
) -> Told:
    """Run a command in this process, a worker, as if it were started in `folder` with these variables."""
    try:
        os.chdir(folder)
    except OSError as error:
        problem = f"{socket.gethostname()} cannot work in {folder} ({error.strerror})."
        remedy = "Let all machines of the cluster see the same files by the same paths."
        return Told([], InputError(problem, remedy))
    for name in [name for name in os.environ if name.startswith(OWN)]:
        del os.environ[name]
    os.environ |= variables
    sys.argv = argv  # the name of who holds a lock
    module, _, name = command.partition(":")
    said = io.StringIO()
    failure: ColaError | Interrupted | None = None
    trace = ""
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            # without what the command line puts around it: signals are Ray's, errors are returned
            getattr(importlib.import_module(module), name).whole().__wrapped__(**asked)
    except Exception as error:
        failure, trace = as_failure(error), traceback.format_exc()
    lines = said.getvalue().splitlines()
    warnings = [line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)]
    return Told(warnings, failure, trace)
