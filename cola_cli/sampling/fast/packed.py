"""Linear layers in oneDNN's own layout, which its products need not bring into order each time."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from cola_cli.sampling.fast.fused_prior import can_pack

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class PackedLinear(nn.Module):
    """A linear layer for generation; shares the bias, but not the weight, of the one it is made of."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = linear.weight.detach()  # what others ask for its type
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def packed(network: NetworkT, *names: str) -> NetworkT:
    """The network with packed linear layers in its parts of these names, everything else shared.

    It is the network itself where weights cannot be packed.
    """
    if not can_pack(next(network.parameters())):
        return network
    chosen = {name: _packed(part) for name, part in network.named_children() if name in names}
    return _with(network, chosen)


def _packed(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return PackedLinear(module)
    return _with(module, {name: _packed(part) for name, part in module.named_children()})


def _with(module: NetworkT, parts: dict[str, nn.Module]) -> NetworkT:
    """A copy of the module with other parts; it shares its parameters."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module.named_children()) | parts
    return twin
