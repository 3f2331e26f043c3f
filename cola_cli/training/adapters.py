"""Low-rank adapters (LoRA; Hu et al., 2021): of a linear layer, W + (alpha / rank) B A with W as it was.

torch's own parametrization, so that whoever reads the weight of a layer, also a part of it, reads the sum. B
begins at zero: before the first step the network is what it was.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cola_cli.settings.training import Lora

_WEIGHT = ".parametrizations.weight."
_ATTENTION = ("qkv", "attention_out")
_LAYERS = {
    "attention": _ATTENTION,
    "blocks": (*_ATTENTION, "mlp_in", "mlp_out", "ffn_in", "ffn_out"),
}


class LowRank(nn.Module):
    """A weight (out, in) with what an adapter adds to it; `a` (rank, in), `b` (out, rank)."""

    def __init__(self, weight: Tensor, lora: Lora) -> None:
        super().__init__()
        self.scale = lora.scale
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.empty(lora.rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, lora.rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The sum (out, in)."""
        return weight + self.scale * (self.b @ self.a)


def adapt(network: nn.Module, lora: Lora) -> None:
    """Freeze the network, and give the linear layers of its blocks that `lora.targets` says adapters."""
    network.requires_grad_(False)
    for name, layer in list(network.named_modules()):
        block, _, leaf = name.rpartition(".")
        if block.startswith("blocks.") and leaf in _LAYERS[lora.targets]:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, lora))


def merged(state: dict[str, Tensor], lora: Lora) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of an adapted network as those of a plain one, and its adapters, named as peft does."""
    weights: dict[str, Tensor] = {}
    adapters: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, is_adapted, part = name.partition(_WEIGHT)
        if not is_adapted:
            weights[name] = value
        elif part == "original":
            a, b = (state[f"{layer}{_WEIGHT}0.{own}"] for own in "ab")
            weights[f"{layer}.weight"] = value + lora.scale * (b @ a)
            adapters |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
    return weights, adapters
