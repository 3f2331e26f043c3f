"""Honest metrics beside an accuracy: valid options, chance, bootstrap intervals, paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cola_cli.artifacts.kinds import EvaluationStatistics
from cola_cli.evaluation.scoring import Item, Verdict

RESAMPLES = 10_000
CONFIDENCE = 0.95


def task_metrics(
    task: str, items: Sequence[Item], verdicts: Sequence[Verdict], cut_prompts: int = 0
) -> EvaluationStatistics:
    """The metrics of scored items; `items` and `verdicts` are in the same order and not empty.

    Accuracy is by the released scorer's rule. `accuracy_given_valid`, that among answers which map to one of
    the options, is to be held against `chance`, the mean of 1 / options; both None for open answers.
    """
    correct = np.array([verdict.correct for verdict in verdicts], dtype=float)
    low, high = bootstrap_interval(correct)
    valid = np.array([verdict.option is not None for verdict in verdicts])
    closed = all(item.choices for item in items)
    return EvaluationStatistics(
        task=task,
        correct=int(correct.sum()),
        n=len(correct),
        accuracy=float(correct.mean()),
        low=low,
        high=high,
        valid_options=float(valid.mean()) if closed else None,
        accuracy_given_valid=float(correct[valid].mean()) if closed and valid.any() else None,
        chance=float(np.mean([1 / len(item.choices) for item in items])) if closed else None,
        cut_prompts=cut_prompts,
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
