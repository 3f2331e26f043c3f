"""What a page is shown of a block on its way from noise to text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cola_cli.api import Cola
from cola_cli.corpus.tokenizer import TextTokenizer
from cola_cli.sampling.engine import Glimpse

TOKENS = 2048  # whose latents the axes are of


class Watching:
    """Latents of a model on a plane: their two principal axes, as those of many of its tokens lie."""

    def __init__(self, model: Cola) -> None:
        block = model.prior.config.block_size * model.vae.config.patch_size
        count = min(TOKENS, model.vae.config.vocab_size) // block * block
        source = torch.Generator().manual_seed(0)
        ids = torch.randperm(model.vae.config.vocab_size, generator=source)[:count]
        means = model.vae.to_prior(model.encode(ids.view(-1, block)).mean).float().cpu()
        flat = means.flatten(0, 1)
        self._centre = flat.mean(0)
        self._axes = torch.linalg.svd(flat - self._centre, full_matrices=False).Vh[:2].T  # (d, 2)

    def places(self, latents: Tensor) -> Tensor:
        """latents (n, d) -> their places on the plane (n, 2)."""
        return (latents.float().cpu() - self._centre) @ self._axes

    def shown(self, glimpse: Glimpse, tokenizer: TextTokenizer) -> dict[str, Any]:
        """What is sent of a glimpse: time, token texts, how sure each is, and where the latents are."""
        ids = glimpse.ids
        return {
            "block": glimpse.block,
            "t": round(glimpse.t, 4),
            "tokens": [tokenizer.continuation(ids[:n], ids[n : n + 1]) for n in range(len(ids))],
            "chances": [round(chance, 3) for chance in glimpse.chances],
            "places": [
                [round(x, 3) for x in place] for place in self.places(glimpse.latents).tolist()
            ],
        }
