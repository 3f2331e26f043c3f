"""Honest metrics beside an accuracy: valid options, chance, bootstrap intervals, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cola_cli.evaluation.scoring import Item, Verdict

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class TaskMetrics:
    """What can be said of one model on one task.

    accuracy: share of right answers by the released scorer's rule, with its 95 % bootstrap interval.
    valid_options: share of answers that map to one of the options (None for open answers).
    accuracy_given_valid: accuracy among those, to be held against `chance`, the mean of 1 / options.
    """

    correct: int
    n: int
    accuracy: float
    low: float
    high: float
    valid_options: float | None
    accuracy_given_valid: float | None
    chance: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def task_metrics(items: Sequence[Item], verdicts: Sequence[Verdict], seed: int = 0) -> TaskMetrics:
    """The metrics of scored items; `items` and `verdicts` are in the same order and not empty."""
    correct = np.array([verdict.correct for verdict in verdicts], dtype=float)
    low, high = bootstrap_interval(correct, seed)
    valid = np.array([verdict.option is not None for verdict in verdicts])
    closed = all(item.choices for item in items)
    return TaskMetrics(
        correct=int(correct.sum()),
        n=len(correct),
        accuracy=float(correct.mean()),
        low=low,
        high=high,
        valid_options=float(valid.mean()) if closed else None,
        accuracy_given_valid=float(correct[valid].mean()) if closed and valid.any() else None,
        chance=float(np.mean([1 / len(item.choices) for item in items])) if closed else None,
    )


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval (95 %) of the mean of `values` (n,)."""
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 1000):  # in slices, so that memory stays small for large n
        picks = generator.integers(0, len(values), (min(1000, RESAMPLES - start), len(values)))
        means[start : start + len(picks)] = values[picks].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `second - first` over the same items, and its 95 % bootstrap interval."""
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    low, high = bootstrap_interval(differences, seed)
    return float(differences.mean()), low, high
