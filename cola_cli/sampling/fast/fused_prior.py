"""The prior's forward pass as generation needs it: the same mathematics in as few operations as possible.

All positions of a pass share a timestep, so shift and scale are the affine part of a LayerNorm and a gate is
part of the residual addition; both come from a table over the grid. On a CPU the weights are packed once for
oneDNN's products, which apply the GELU in registers. The parts before and after attention are functions of
tensors alone, one compilation of which serves all layers on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_cli.models.prior import Block, Prior
from cola_cli.models.rotary import wide
from cola_cli.sampling.fast.cpu_attention import block_attention

# attend(layer, q, k, v) -> out, all (entries, n, H, head_dim); q and k are normalised and rotated. One that
# does that by itself is called as attend(layer, qkv), qkv (entries, n, 3, H, head_dim).
PackedAttend = Callable[..., Tensor]


class Dense(NamedTuple):
    """A linear layer; `packed` where the weight is in oneDNN's layout."""

    weight: Tensor
    bias: Tensor | None
    packed: bool

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """x (..., in) -> (..., out), and GELU-tanh of it if asked."""
        if self.packed:
            name, variant = ("gelu", "tanh") if gelu else ("none", "")
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], variant)
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y, approximate="tanh") if gelu else y


class Layer(NamedTuple):
    """The weights of one block but its modulation."""

    qkv: Dense
    q_norm: Tensor  # (2, head_dim): weight and bias
    k_norm: Tensor
    attention_out: Dense
    mlp_in: Dense
    mlp_out: Dense


# shift, 1 + scale, gate of attention, then of the MLP; (D,), (n, D), (E, 1, D) or (E, n, D)
Modulations = Sequence[Tensor]


class FusedPrior:
    """Velocities at the evaluations of one grid."""

    @torch.inference_mode()
    def __init__(self, prior: Prior, times: Tensor) -> None:
        """times (evaluations,) in [0, 1], or (evaluations, n) of positions with times of their own."""
        self.config = config = prior.config
        self._prior = prior
        weight = prior.latent_in.weight
        self._before, self._after = before_attention, after_attention
        self._compiled = False
        if weight.is_cuda:
            self.compile()
        pack = can_pack(weight)
        self._latent_in = _dense(prior.latent_in, pack)
        self._latent_out = None if config.chain else _dense(prior.latent_out, pack)
        self._own_out = None if prior.own_out is None else _dense(prior.own_out, pack)
        self._layers = [_layer(block, pack) for block in prior.each_block()]
        self.norms = [(layer.q_norm, layer.k_norm) for layer in self._layers]
        self.kernel = block_attention(weight, config.block_size, config.head_dim, config.norm_eps)
        table = prior.modulation(torch.cat((times.flatten(), times.new_zeros(1))))
        blocks = table.blocks[:, :, 0, :, 0].permute(2, 0, 1, 3).clone()  # (times, layers, 6, D)
        blocks[:, :, 1::3] += 1
        shift, factor = table.output[:, 0, :, 0]  # (times, D) each
        factor = factor + 1
        norm = prior.out_norm
        output = torch.stack((norm.bias * factor + shift, norm.weight * factor), 1)  # (times, 2, D)
        # positions of a block that are finished at an evaluation, the first ones
        self._finished = (times.view(len(times), -1) == 0).sum(1).tolist()
        # by evaluation; t = 0 is the last
        self._modulations = [[list(layer) for layer in time] for time in self._of(blocks, times)]
        self._output = [list(time) for time in self._of(output, times)]

    @staticmethod
    def _of(table: Tensor, times: Tensor) -> list[Tensor]:
        """A table (times + 1, ..., D) by evaluation: (..., D), or (..., n, D) of positions."""
        if times.dim() == 1:
            return list(table)
        own = table[:-1].unflatten(0, tuple(times.shape))  # (evaluations, n, ..., D)
        return [*own.movedim(1, -2).contiguous(), table[-1]]

    def compile(self, **options: Any) -> None:
        """Compile what lies between the attentions; `options` are those of torch.compile."""
        self._before = torch.compile(before_attention, fullgraph=True, **options)
        self._after = torch.compile(after_attention, fullgraph=True, **options)
        self._compiled = True

    def rotation(self, positions: Tensor) -> Tensor:
        """The rotary table of positions (E, n) for all channels: cos + i sin, (E, n, 1, head_dim / 2).

        Channels that are not rotated get an angle of zero. On a GPU real and imaginary part are apart, as
        compilers know no complex numbers: (E, n, 1, head_dim / 2, 2).
        """
        table = self._prior.rotation(positions)
        still = self.config.head_dim // 2 - table.cos.shape[-1]
        cos, sin = F.pad(table.cos, (0, still), value=1.0), F.pad(table.sin, (0, still))
        parts = torch.stack((cos, sin), -1).view(*positions.shape, 1, -1, 2)
        return parts if self._compiled else torch.view_as_complex(parts)

    def _with_tokens(self, x: Tensor, z: Tensor, evaluation: int, clean: Tensor | None) -> Tensor:
        """x (E, n, D) of z (E, n, d) with the tokens' embeddings, see `Prior.with_tokens`."""
        prior, finished = self._prior, self._finished[evaluation]
        if clean is None and not finished:
            return x
        if clean is None:
            few = prior.with_tokens(x[:, :finished], z[:, :finished])
            return torch.cat((few, x[:, finished:]), 1)
        ended = torch.arange(z.shape[1], device=z.device).unsqueeze(-1) < finished
        return prior.with_tokens(x, z, (clean | ended).squeeze(-1))

    def __call__(
        self,
        z: Tensor,
        evaluation: int,
        clean: Tensor | None,
        table: Tensor | None,
        attend: PackedAttend,
        again: Tensor | None = None,
        commits: int = 0,
        said: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """z (E, n, d) -> the network's output (E - commits, n, out_dim), float32, as of `Prior`.

        At `clean` (E, n or 1, 1) bool, t is 0 instead of the evaluation's time. Without a rotary table,
        `attend` normalises and rotates. `again` (A,) are entries that come a second time behind the others:
        what is before the first attention is computed once, then there are E + A entries, in the result too.
        The first `commits` entries are only remembered. said: what the positions before the other entries'
        blocks say of them, (E + A - commits, D), given what the last ones of the committed blocks say.
        """
        config = self.config
        x = self._latent_in(z.to(self._latent_in.weight.dtype))
        if config.evidence:
            x = self._with_tokens(x, z, evaluation, clean)
        for layer, weights in enumerate(self._layers):
            m: Modulations = self._modulations[evaluation][layer]
            if clean is not None:
                m = _where(clean, self._modulations[-1][layer], m)
            parts = self._before(x, m[0], m[1], weights, table, config.heads, config.norm_eps)
            if layer == 0 and again is not None:
                x, *parts = (repeated(part, again) for part in (x, *parts))
                table = None if table is None else repeated(table, again)
                if clean is not None:
                    clean = repeated(clean, again)
                    m = [repeated(part, again) for part in m]
            out = attend(layer, *parts).flatten(2)
            x = self._after(x, out, m[2], m[3], m[4], m[5], weights, config.norm_eps)
        last: Modulations = self._output[evaluation]
        if clean is not None:
            last = _where(clean, self._output[-1], last)
        shift, factor = last
        x = modulated(x, shift, factor, config.norm_eps)
        committed, x = x[:commits, -1], x[commits:]
        if self._own_out is not None:
            assert said is not None
            x = self._own_out(x) + torch.cat((said(committed).unsqueeze(1), x[:, :-1]), 1)
        return (x if self._latent_out is None else self._latent_out(x)).float()


def before_attention(
    x: Tensor,
    shift: Tensor,
    factor: Tensor,
    layer: Layer,
    table: Tensor | None,
    heads: int,
    eps: float,
) -> Sequence[Tensor]:
    """Queries, keys and values (E, n, H, head_dim) of x (E, n, D).

    Without a table, as they leave their product: one (E, n, 3, H, head_dim).
    """
    qkv = layer.qkv(modulated(x, shift, factor, eps)).view(*x.shape[:2], 3, heads, -1)
    if table is None:
        return (qkv,)
    q, k, v = qkv.unbind(2)
    q = rotated(torch.layer_norm(q, q.shape[-1:], layer.q_norm[0], layer.q_norm[1], eps), table)
    k = rotated(torch.layer_norm(k, k.shape[-1:], layer.k_norm[0], layer.k_norm[1], eps), table)
    return q, k, v


def after_attention(
    x: Tensor,
    attention: Tensor,
    gate: Tensor,
    shift: Tensor,
    factor: Tensor,
    mlp_gate: Tensor,
    layer: Layer,
    eps: float,
) -> Tensor:
    """The rest of a block: x and attention (E, n, D) -> (E, n, D)."""
    x = torch.addcmul(x, layer.attention_out(attention), gate)
    h = layer.mlp_out(layer.mlp_in(modulated(x, shift, factor, eps), gelu=True))
    return torch.addcmul(x, h, mlp_gate)


def modulated(x: Tensor, shift: Tensor, factor: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * factor + shift; x (E, n, D), shift and factor as in Modulations."""
    if shift.dim() == 1:
        return torch.layer_norm(x, x.shape[-1:], factor, shift, eps)
    return torch.addcmul(shift, torch.layer_norm(x, x.shape[-1:], eps=eps), factor)


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """x (E, n, H, head_dim) with its pairs of channels turned as `FusedPrior.rotation` says."""
    pairs = wide(x).view(*x.shape[:-1], -1, 2)
    if table.is_complex():
        turned = torch.view_as_real(torch.view_as_complex(pairs) * table)
        return turned.view(x.shape).to(x.dtype)
    even, odd = pairs.unbind(-1)
    cos, sin = table.unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
    return turned.flatten(-2).to(x.dtype)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's packed products serve this weight."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def repeated(x: Tensor, again: Tensor) -> Tensor:
    """x (E, ...) with its entries `again` (A,) behind it, (E + A, ...)."""
    return torch.cat((x, x[again]))


def _where(clean: Tensor, zero: Sequence[Tensor], own: Sequence[Tensor]) -> list[Tensor]:
    return [torch.where(clean, a, b) for a, b in zip(zero, own, strict=True)]


def dense(weight: Tensor, bias: Tensor | None, pack: bool) -> Dense:
    """A linear layer with this weight (out, in), packed if asked."""
    weight = weight.detach()
    if pack:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight)
    return Dense(weight, None if bias is None else bias.detach(), pack)


def _dense(linear: nn.Linear, pack: bool) -> Dense:
    return dense(linear.weight, linear.bias, pack)


def _layer(block: Block, pack: bool) -> Layer:
    def norm(own: nn.LayerNorm) -> Tensor:
        return torch.stack((own.weight.detach(), own.bias.detach()))

    return Layer(
        _dense(block.qkv, pack),
        norm(block.q_norm),
        norm(block.k_norm),
        _dense(block.attention_out, pack),
        _dense(block.mlp_in, pack),
        _dense(block.mlp_out, pack),
    )
