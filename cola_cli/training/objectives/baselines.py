"""The baselines' losses: next-token prediction (AR) and masked diffusion (LLaDA)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.models.attention import apart
from cola_cli.models.rotary import wide
from cola_cli.models.transformer import Transformer
from cola_cli.training import randomness
from cola_cli.training.objectives import objective as objectives
from cola_cli.training.objectives.objective import Batch, Draws, Objective


class _OverTokens(Objective):
    """What the losses of a transformer over tokens have in common."""

    def __init__(self, network: Transformer, length: int) -> None:
        super().__init__()
        self.network, self.length = network, length


class NextToken(_OverTokens):
    """-E log p(x_i | x_1 ... x_{i-1}), over all tokens of a sequence but its first, or its answers."""

    def draw(
        self, rows: Rows, randoms: Sequence[np.random.Generator], step: int, validation: bool
    ) -> list[Draws]:
        """Tokens, and a weight for each that is predicted: none that begins a document that stands apart."""
        drawn = objectives.drawn_pieces(rows)
        weight = objectives.learnt_weights(rows)[:, 1:]
        if drawn:
            weight = weight * (np.diff(drawn["pieces"]) == 0)
        return [drawn | {"tokens": rows.tokens, "target_weight": weight}]

    def forward(self, batch: Batch, evaluate: bool = False) -> dict[str, Tensor]:
        """tokens (B, L), target_weight (B, L - 1) -> the loss, nats a token."""
        tokens, weight = batch["tokens"], batch["target_weight"]
        pieces = batch["pieces"][:, :-1] if "pieces" in batch else None
        logits = self.network(tokens[:, :-1], None, apart(pieces, 1))
        terms = {"loss": objectives.reconstruction(logits, tokens[:, 1:], weight)}
        if evaluate:
            terms["accuracy"] = ((logits.argmax(-1) == tokens[:, 1:]) * weight).sum()
        return terms


class MaskedDiffusion(_OverTokens):
    """E_t (1/t) sum_i 1[x_i masked] (-log p(x_i | x_t)), t uniform in (0, 1], tokens masked with chance t.

    LLaDA's loss (Cola DLM paper, appendix on continuous latents), over the number of tokens. Of
    conversations only answers are masked.
    """

    def __init__(self, network: Transformer, length: int, least: float) -> None:
        super().__init__(network, length)
        self.least = least

    def draw(
        self, rows: Rows, randoms: Sequence[np.random.Generator], step: int, validation: bool
    ) -> list[Draws]:
        """Tokens, the masked copy, and 1/t at the masked places; t in [least, 1), one a sequence."""
        t = self.least + (1 - self.least) * randomness.uniform(randoms, 1)
        chances = randomness.uniform(randoms, rows.tokens.shape[1])
        weight = objectives.learnt_weights(rows)
        masked = (chances < t) & (weight > 0)
        return [
            {
                "tokens": rows.tokens,
                "masked_tokens": np.where(masked, self.network.config.mask_token_id, rows.tokens),
                "masked_places": np.flatnonzero(masked),
                "inverse_t": np.broadcast_to(1 / t, masked.shape)[masked],
                "token_weight": weight,
                **objectives.drawn_pieces(rows),
            }
        ]

    def forward(self, batch: Batch, evaluate: bool = False) -> dict[str, Tensor]:
        """The loss, a bound on the negative log-likelihood in nats a token."""
        places = batch["masked_places"]
        targets = batch["tokens"].flatten()[places]
        weight = batch["token_weight"].flatten()[places]
        attend = apart(batch.get("pieces"), self.length)
        hidden = self.network.hidden(batch["masked_tokens"], None, attend).flatten(0, 1)[places]
        logits = wide(self.network.token_out(hidden))  # (masked tokens, V)
        losses = F.cross_entropy(logits, targets, reduction="none")
        terms = {"loss": torch.dot(losses, batch["inverse_t"].to(losses) * weight)}
        if evaluate:
            terms["masked_right"] = ((logits.argmax(-1) == targets) * weight).sum()
            terms["masked_share"] = weight.sum()
        return terms

    def metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The scalars, and the share of masked tokens that are predicted."""
        metrics = super().metrics(sums)
        if "masked_share" in metrics:
            right, share = metrics.pop("masked_right"), metrics.pop("masked_share")
            metrics["accuracy_masked"] = right / max(share, 1e-12)
        return metrics
