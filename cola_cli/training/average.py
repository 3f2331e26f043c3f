"""The exponential moving average of the weights (EMA)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from cola_cli.training.objectives.objective import Objective
from cola_cli.training.parallelize import reshard


class MovingAverage:
    """w <- decay w + (1 - decay) parameter after every step; off when decay is 0.

    `values` are the averages in the order of the parameters, sharded as they are; empty when off.
    """

    def __init__(self, objective: Objective, parameters: list[Tensor], decay: float) -> None:
        self._objective = objective
        self._parameters = parameters
        self._decay = decay
        self.values = [p.detach().clone() for p in parameters] if decay else []

    def update(self) -> None:
        """Count the parameters as they are now."""
        if self.values:
            torch._foreach_lerp_(self.values, self._parameters, 1 - self._decay)

    def replace(self) -> None:
        """Give the parameters their averages, for good."""
        self._assign(self.values)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters are their averages within this block, and what they were after it."""
        kept = [p.detach().clone() for p in self._parameters] if self.values else []
        self._assign(self.values)
        try:
            yield
        finally:
            self._assign(kept)

    @torch.no_grad()
    def _assign(self, values: list[Tensor]) -> None:
        # What was gathered for a forward pass without a backward pass would outlive the assignment.
        reshard(self._objective)
        for parameter, value in zip(self._parameters, values, strict=bool(values)):
            parameter.copy_(value)
