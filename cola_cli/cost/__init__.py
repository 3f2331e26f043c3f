"""What training and sampling cost, in closed form: parameters, operations, memory. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cola_cli.models.config import TextVAEConfig


@dataclass(frozen=True)
class Data:
    """The sequences that a model is trained on: of an artifact, or of one that a study plans.

    length: tokens of a sequence. vocab_size: of the tokenizer. vae: the one that made the latents, if any.
    separate: where documents do not see one another, tokens at whose multiples they begin.
    """

    length: int
    vocab_size: int
    vae: TextVAEConfig | None = None
    separate: int = 0

    @property
    def encoder(self) -> TextVAEConfig:
        """The VAE of latents."""
        assert self.vae is not None
        return self.vae

    @property
    def positions(self) -> int:
        """Latents of a sequence."""
        return self.length // self.encoder.patch_size
