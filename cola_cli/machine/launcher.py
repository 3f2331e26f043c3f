"""What a launcher such as torchrun or srun tells a process in environment variables. Needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cola_cli.errors import UsageError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN = "Start several processes with torchrun; for one alone, unset RANK and WORLD_SIZE."
EXPLICIT = "Give --shard I/N, or run it in a SLURM array, an Indexed Job with COLA_SHARDS, or under torchrun."
# Variables of the index and the count of a process: SLURM's job arrays, Kubernetes' Indexed Jobs, torchrun.
INDEXED = {
    "SLURM_ARRAY_TASK_ID": "SLURM_ARRAY_TASK_COUNT",
    "JOB_COMPLETION_INDEX": "COLA_SHARDS",  # Kubernetes does not tell the count
    "RANK": "WORLD_SIZE",
}


@dataclass(frozen=True)
class Launch:
    """One of `size` processes that meet at `host`:`port`."""

    rank: int
    size: int
    local_rank: int  # among the processes of this machine
    host: str
    port: int
    hosts_store: bool  # whether rank 0 serves the store, not the launcher
    attempt: int  # torchrun starts the processes again when one fails


def launched() -> Launch | None:
    """The place of this process among several; None: it is alone.

    Raises UsageError, naming the variables, when only some are set or one is not a number.
    """
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    if not given:
        return None
    size = _number("WORLD_SIZE", least=1)
    rank = _number("RANK", least=0) if size > 1 or "RANK" in given else 0
    if rank >= size:
        raise _wrong(f"RANK={rank} is not below WORLD_SIZE={size}")
    if size == 1:
        return None
    port = _number("MASTER_PORT", least=1, most=65535)
    if not os.environ.get("MASTER_ADDR"):
        raise _wrong(f"{_is_set(*given)}, but MASTER_ADDR is {_state('MASTER_ADDR')}")
    return Launch(
        rank=rank,
        size=size,
        local_rank=_number("LOCAL_RANK", least=0, absent=0),
        host=os.environ["MASTER_ADDR"],
        port=port,
        hosts_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        attempt=_number("TORCHELASTIC_RESTART_COUNT", least=0, absent=0),
    )


def launched_shard() -> tuple[int, int]:
    """(index from 0, count) of this process among those of a job array, an Indexed Job or torchrun.

    Raises UsageError, naming the variables, when none or only some are set, or when they do not fit.
    """
    found = [pair for pair in INDEXED.items() if any(name in os.environ for name in pair)]
    if len(found) != 1:
        listed = " or ".join(index for index, _ in found or INDEXED.items())
        problem = f"it is not clear which of {listed} counts" if found else f"{listed} is not set"
        raise _wrong(f"--shard auto: {problem}", EXPLICIT)
    ((index_name, count_name),) = found
    index = _number(index_name, least=0, remedy=EXPLICIT)
    count = _number(count_name, least=1, remedy=EXPLICIT)
    if index_name.startswith("SLURM"):  # --array=5-20:5 has the indices 5, 10, 15, 20
        first = _number("SLURM_ARRAY_TASK_MIN", least=0, absent=0, remedy=EXPLICIT)
        step = _number("SLURM_ARRAY_TASK_STEP", least=1, absent=1, remedy=EXPLICIT)
        index = (index - first) // step
    if not 0 <= index < count:
        shown = f"{index_name}={os.environ[index_name]}, {count_name}={count}"
        raise _wrong(f"--shard auto: {shown} is not an index of so many without gaps", EXPLICIT)
    return index, count


def leads() -> bool:
    """Whether this process prints: of several only the first."""
    found = launched()
    return found is None or found.rank == 0


def _number(
    name: str,
    least: int,
    most: int = 1 << 31,
    absent: int | None = None,
    remedy: str = TORCHRUN,
) -> int:
    if absent is not None and name not in os.environ:
        return absent
    text = os.environ.get(name, "")
    if not text:
        given = [n for n in NEEDED if os.environ.get(n)]
        problem = f"variable {name} is {_state(name)}"
        raise _wrong(f"{_is_set(*given)}, but {problem}" if given else problem, remedy)
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:20]) <= most:
        raise _wrong(f"variable {name}: {text!r} is not a number from {least} to {most}", remedy)
    return int(text)


def _state(name: str) -> str:
    return "empty" if name in os.environ else "not set"


def _is_set(*names: str) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} set"


def _wrong(problem: str, remedy: str = TORCHRUN) -> UsageError:
    return UsageError(f"{problem}.", remedy)
