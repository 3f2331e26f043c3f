"""AdamW by the paper's recipe, and Muon for the matrices of the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cola_cli.settings.training import Optimizer as OptimizerSettings

# Coefficients of the quintic Newton-Schulz iteration that takes every singular value near 1 in five steps.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5

Each = Callable[[Callable[[Tensor], Tensor], Iterable[Tensor]], Iterable[Tensor]]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearly the orthogonal factor of each matrix: singular values become about 1. (n, rows, columns).

    Newton-Schulz in bf16 on a GPU and in float32 on a CPU, where bf16 products are emulated.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz, with decoupled weight decay.

    `torch.optim.Muon` gives the same update but orthogonalises one matrix at a time and always in bf16,
    27 times slower than this on a CPU; here matrices of one shape go through together.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float, weight_decay: float, scale: str,
        each: Each = map,
    ) -> None:  # fmt: skip
        """each: computes for the matrices of every shape, perhaps side by side."""
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "scale": scale}
        )
        self._each = each

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            # as they are asked for: not all in memory at once
            directions = (
                torch.stack([self._direction(parameter, group["momentum"]) for parameter in alike])
                for alike in by_shape.values()
            )
            orthogonal = self._each(orthogonalize, directions)
            for (shape, alike), moves in zip(by_shape.items(), orthogonal, strict=True):
                size = _size(group["scale"], *shape)
                for parameter, move in zip(alike, moves, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(move, alpha=-group["lr"] * size)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        # Nesterov: the gradient looks one step ahead along the momentum.
        return parameter.grad.lerp(state["momentum"], momentum)


def _size(scale: str, rows: int, columns: int) -> float:
    if scale == "spectral":
        return max(1.0, rows / columns) ** 0.5
    return 0.2 * max(rows, columns) ** 0.5


def build(
    parts: Iterable[tuple[nn.Module, float]], settings: OptimizerSettings, each: Each = map
) -> list[torch.optim.Optimizer]:
    """The optimisers of a model made of `parts` (module, ratio of its learning rate to the schedule's).

    Every group has `ratio`, by which `set_learning_rate` multiplies the schedule. each: see `Muon`.
    """
    adamw: list[dict[str, Any]] = []
    muon: list[dict[str, Any]] = []
    for module, ratio in parts:
        matrices, decayed, spared = [], [], []
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            is_matrix = parameter.ndim == 2
            if settings.name == "muon" and is_matrix and _moved_by_muon(name):
                matrices.append(parameter)
            elif settings.decay == "all" or (is_matrix and "embed" not in name):
                decayed.append(parameter)
            else:
                spared.append(parameter)
        muon_ratio = ratio * (settings.muon_lr or settings.lr) / settings.lr
        decay = settings.weight_decay
        for parameters, weight_decay in ((decayed, decay), (spared, 0.0)):
            if parameters:
                adamw.append({"params": parameters, "ratio": ratio, "weight_decay": weight_decay})
        if matrices:
            muon.append({"params": matrices, "ratio": muon_ratio, "weight_decay": decay})
    optimizers: list[torch.optim.Optimizer] = []
    if adamw:
        betas = (settings.beta1, settings.beta2)
        optimizers.append(
            torch.optim.AdamW(adamw, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)
        )
    if muon:
        own = settings.muon_momentum, 0.0, settings.muon_scale
        optimizers.append(Muon(muon, settings.lr, *own, each))
    return optimizers


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Give every group the schedule's rate times its ratio."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]


def _moved_by_muon(name: str) -> bool:
    # Matrices between hidden states; input, output, timestep and modulation layers stay with AdamW.
    return name.startswith(("blocks.", "encoder.", "decoder.")) and "modulation" not in name
