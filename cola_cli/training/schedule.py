"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cola_cli.settings.training import Mask, Optimizer


def learning_rate(step: int, settings: Optimizer, steps: int) -> float:
    """The learning rate of update `step` (from 0) in a run of `steps` updates.

    Linear warm-up from `lr_start` to `lr`, then by `schedule`: cosine to `lr_end`, constant, or constant
    with a linear decay to `lr_end` over the last `decay_fraction` of the run.
    """
    last = settings.decay_until or steps
    if step < settings.warmup_steps:
        share = (step + 1) / settings.warmup_steps
        return settings.lr_start + (settings.lr - settings.lr_start) * share
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "cosine":
        begin = settings.warmup_steps
        fall = 0.5 * (1 + math.cos(math.pi * _progress(step, begin, last)))
    else:
        fall = 1 - _progress(step, _decay_begin(settings, last), last)
    return settings.lr_end + (settings.lr - settings.lr_end) * fall


def shared_steps(settings: Optimizer, steps: int) -> int:
    """The first updates of a run of `steps` that have the same learning rate in every longer run."""
    if settings.schedule == "constant" or settings.decay_until:
        return steps
    begin = settings.warmup_steps
    if settings.schedule == "constant-then-decay":
        begin = _decay_begin(settings, steps)
    return min(steps, begin)


def kept_step(settings: Optimizer, steps: int) -> int:
    """The step whose state a longer run goes on from: the last one, or that where a constant rate ends."""
    if settings.schedule == "constant-then-decay":
        return shared_steps(settings, steps) or steps
    return steps


def early_blocks(curriculum: Sequence[Sequence[int]], steps: int) -> list[tuple[int, int]]:
    """The block sizes and numbers of updates that a run of `steps` begins with: at most a third of them."""
    left, limited = steps // 3, []
    for size, updates in curriculum:
        limited.append((size, min(updates, left)))
        left -= limited[-1][1]
    return limited


def mask_weight(step: int, settings: Mask) -> float:
    """The weight of the masked-token loss at update `step`: 0 before `start`, full `ramp` steps later."""
    if step < settings.start:
        return 0.0
    if not settings.ramp:
        return settings.weight
    return settings.weight * min(1.0, (step - settings.start + 1) / settings.ramp)


def _decay_begin(settings: Optimizer, last: int) -> int:
    return max(settings.warmup_steps, round(last * (1 - settings.decay_fraction)))


def _progress(step: int, begin: int, end: int) -> float:
    # The last update of the run, step end - 1, arrives at the end of the fall.
    return min(1.0, max(0.0, (step - begin + 1) / max(1, end - begin)))
