"""A prior with a token head becomes one of few passes: in each it learns the tokens of a group from noise.

A block has as many groups of positions as there are passes. As in its sampling, the groups before are clean,
the group whose turn it is and those after it are noise, and a chain (`models.chain`) brings the tokens of
the group together. It learns by cross-entropy, each token behind those before it in its group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.models.config import TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.settings.distill import DistillSettings
from cola_cli.training.objectives import objective as objectives
from cola_cli.training.objectives.distillation import Blocks, begun_blocks, draw_blocks
from cola_cli.training.objectives.objective import Batch, Draws, Objective


class Chained(Objective):
    """A student with a chain, on posteriors and tokens read from latent shards."""

    times: Tensor  # 0 and 1
    levels: Tensor  # (N,) the place of 1 in `times`

    def __init__(
        self, student: Prior, settings: DistillSettings, length: int, vae: TextVAEConfig
    ) -> None:
        super().__init__()
        self.student, self.settings = student, settings
        self.length, self.to_prior = length, vae.to_prior
        self.register_buffer("times", torch.tensor([0.0, 1.0]), persistent=False)
        self.register_buffer("levels", torch.ones(length, dtype=torch.int64), persistent=False)

    def draw(
        self, rows: Rows, randoms: Sequence[np.random.Generator], step: int, validation: bool
    ) -> list[Draws]:
        """Posterior, noise, tokens, which positions are known, and weights: of a group of each block."""
        config = self.student.config
        drawn, weight = draw_blocks(rows, randoms, config.block_size, self.settings.data)
        clean = drawn["clean"]
        groups = np.arange(config.block_size) // config.group_size
        blocks = clean.shape[1] // config.block_size
        turns = np.stack([own.integers(config.passes, size=(blocks, 1)) for own in randoms])
        asked = (groups == turns).reshape(clean.shape)
        return [
            drawn
            | {
                "clean": clean | (groups < turns).reshape(clean.shape),
                "tokens": rows.tokens,
                "token_weight": weight * asked,
            }
        ]

    def forward(self, batch: Batch, evaluate: bool = False) -> dict[str, Tensor]:
        """mean, logvar (B, N, d), tokens (B, N) and draws -> the cross-entropy of the tokens."""
        student, tokens = self.student, batch["tokens"]
        z0, z = begun_blocks(batch, self.to_prior, self.settings.data)
        network = Blocks(student, z0, batch["clean"], self.times, pieces=batch.get("pieces"))
        hidden = network(z, self.levels, None)
        hidden, own = (
            part.unflatten(1, (-1, student.config.group_size)) for part in (hidden, tokens)
        )
        assert student.chain is not None
        read = student.chain(hidden.flatten(0, 1), own.flatten(0, 1))
        logits = student.latent_out(read).view(*tokens.shape, -1)
        weight = batch["token_weight"]
        terms = {"loss": objectives.reconstruction(logits, tokens, weight)}
        if evaluate:
            terms["accuracy"] = ((logits.argmax(-1) == tokens) * weight).sum()
        return terms


@torch.no_grad()
def cool(student: Prior, temperature: float) -> None:
    """Put a temperature of the token head into its weights."""
    for weight in (student.latent_out.weight, student.latent_out.bias):
        weight.div_(temperature)
