"""Threads and repeatability of the matrix libraries, chosen before torch is first imported.

OpenMP threads that wait by spinning can make small operations ten times slower on shared processors, and
matrix libraries may round differently from run to run unless told not to. Both are decided by environment
variables that are read once, when torch is loaded.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from cola_cli.errors import UsageError

MOST = 4096
SPIN_COUNT = "1000"  # short spinning: threads meet quickly, and yield when a neighbour has the core
# Same rounding whatever the memory alignment of the operands.
REPEATABLE = {"MKL_CBWR": "AUTO,STRICT", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@dataclass(frozen=True)
class Threads:
    """How many threads torch uses and why."""

    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count} thread{'s' if self.count > 1 else ''} ({self.reason})"


def available_cores() -> int:
    """Processors this process may use: its affinity mask, cut by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        with open("/sys/fs/cgroup/cpu.max") as stream:
            quota, period = stream.read().split()
        if quota != "max":
            return max(1, min(cores or 1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores or 1


def choose_threads(requested: int | None = None, recorded: int | None = None) -> Threads:
    """The number of threads, and why: a flag, what an interrupted run began with, COLA_THREADS,
    OMP_NUM_THREADS, then the cores at hand.

    Raises UsageError for a COLA_THREADS that is not a number of threads.
    """
    if requested is not None:
        return Threads(requested, "--threads")
    if recorded is not None:
        return Threads(recorded, "as the interrupted run had")
    if text := os.environ.get("COLA_THREADS"):
        if not text.isdecimal() or not 1 <= int(text) <= MOST:
            raise UsageError(
                f"variable COLA_THREADS: {text!r} is not a number of threads.",
                f"Give 1 to {MOST}.",
            )
        return Threads(int(text), "COLA_THREADS")
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # one number a nesting level
    if first.isdecimal() and int(first) > 0:
        return Threads(int(first), "OMP_NUM_THREADS")
    return Threads(available_cores(), "the processors at hand")


def prepare_torch(requested: int | None = None, recorded: int | None = None) -> Threads:
    """Set the environment that torch reads when it is loaded; a user's own variables win.

    Called by every command that computes, before torch is imported. When torch is there already (cola used
    as a library), only the thread count is applied. See `choose_threads` for the arguments.
    """
    threads = choose_threads(requested, recorded)
    os.environ["OMP_NUM_THREADS"] = str(threads.count)
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    for variable, value in REPEATABLE.items():
        os.environ.setdefault(variable, value)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads.count)
    return threads


def peak_memory() -> float:
    """The most memory that this process has held so far, bytes.

    Prefers VmHWM: on Linux ru_maxrss starts from the parent's peak.
    """
    try:
        with open("/proc/self/status") as stream:
            for line in stream:
                if line.startswith("VmHWM:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def memory() -> float | None:
    """Bytes of memory, swap included, that processes here may hold at all; None where that is not known."""
    try:
        with open("/proc/meminfo") as stream:
            lines = dict(line.split(":") for line in stream)
        held = sum(float(lines[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal"))
    except (OSError, KeyError, ValueError):
        return None
    try:
        with open("/sys/fs/cgroup/memory.max") as stream:
            return min(held, float(stream.read()))
    except (OSError, ValueError):
        return held


def describe_environment(threads: Threads) -> dict[str, str | int]:
    """What can change the last digit of a result; recorded in manifests."""
    import platform

    import torch

    return {
        "threads": threads.count,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": str(torch.backends.cpu.get_cpu_capability()),
        **{name: os.environ[name] for name in ("MKL_CBWR", "GOMP_SPINCOUNT") if name in os.environ},
    }
