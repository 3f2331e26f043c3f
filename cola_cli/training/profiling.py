"""A trace of some steps of a training, for Perfetto: which operations took how long, in every thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from cola_cli.artifacts.files import atomic_file

WARM, TRACED = 2, 3  # steps before the trace and in it


@contextmanager
def profiled(file: Path | None) -> Iterator[Callable[[], None]]:
    """Trace `TRACED` steps after `WARM` others into `file`; the function that is given ends a step.

    None: nothing is traced. A run of fewer steps writes no file.
    """
    if file is None:
        yield lambda: None
        return

    def write(trace: profile) -> None:
        with atomic_file(file) as temporary:
            trace.export_chrome_trace(str(temporary))

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    steps = schedule(wait=0, warmup=WARM, active=TRACED, repeat=1)
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(
        activities=activities,
        schedule=steps,
        on_trace_ready=write,
        experimental_config=every_thread,
    ) as trace:
        yield trace.step
