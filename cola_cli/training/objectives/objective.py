"""Loss terms of the Cola DLM paper, and what the training loop asks of an objective.

Every term is a weighted sum over positions. The loop scales the weights so that they add to one over the
whole global batch, whatever the number of micro-batches and processes; padded positions weigh nothing, and
priors and models over tokens learn only the answers of conversations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_cli.corpus.sequences import Rows
from cola_cli.models.rotary import wide

# Arrays of one micro-batch by name. Those called `*_weight` are scaled by the loop to add to one over
# the global batch.
Draws = dict[str, Any]
Batch = dict[str, Any]


class Objective(nn.Module, ABC):
    """A model with its loss. `draw` runs on the host in the reader's thread, `forward` on the device."""

    length: int  # tokens a sequence

    @abstractmethod
    def draw(
        self, rows: Rows, randoms: Sequence[np.random.Generator], step: int, validation: bool
    ) -> list[Draws]:
        """Micro-batches of these rows: inputs, noise and weights, a pure function of the arguments."""

    @abstractmethod
    def forward(self, batch: Batch, evaluate: bool = False) -> dict[str, Tensor]:
        """The loss (under "loss") and its terms as weighted sums; more metrics when evaluating."""

    def metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Numbers to log from the sums of `forward` over a whole batch."""
        return {name: value.item() for name, value in sums.items() if value.ndim == 0}

    def parts(self) -> list[tuple[nn.Module, float]]:
        """The trained modules, each with the ratio of its learning rate to the schedule's."""
        return [(module, 1.0) for module in self.children()]


def reconstruction(logits: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy, -E log p(x|z). logits (..., V), tokens and weight (...) -> scalar, nats."""
    losses = F.cross_entropy(wide(logits).flatten(0, -2), tokens.flatten(), reduction="none")
    return torch.dot(losses, weight.flatten())


def weighted(terms: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of terms (B, N), a scalar."""
    return (terms * weight).sum()


def token_weights(rows: Rows) -> np.ndarray:
    """1 on the tokens of the text, 0 on the padding, (B, L) float32."""
    return rows.is_text.astype(np.float32)


def learnt_weights(rows: Rows) -> np.ndarray:
    """1 on the tokens that are learnt, of conversations the answers alone, (B, L) float32."""
    weights = token_weights(rows)
    return weights if rows.response is None else weights * rows.response


def drawn_pieces(rows: Rows, patch_size: int = 1) -> Draws:
    """`pieces`, which document each position is of, (B, N); nothing where documents see one another."""
    pieces = rows.position_pieces(patch_size)
    return {} if pieces is None else {"pieces": pieces}


def position_weights(rows: Rows, patch_size: int) -> np.ndarray:
    """1 on the latent positions that hold any text, (B, N) float32."""
    return token_weights(rows)[:, ::patch_size]
