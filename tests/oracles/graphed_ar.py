"""Autoregressive generation of one sequence with the care that cola's own engine gets on a GPU.

A static cache of rotated keys and values, masked to the current length; one step a token, captured in a CUDA
graph, that reads and writes its token and position in place; parts between the attentions compiled. The host
waits for nothing until the last token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.models.rotary import Rotation, rotate_halves, rotation
from cola_cli.models.transformer import Block, Transformer

WARM_UPS = 3


class GraphedAutoregressive:
    """Greedy continuations of one prompt at a time, up to `length` tokens in all."""

    def __init__(self, network: Transformer, length: int) -> None:
        config = network.config
        self._network, self._length = network, length
        weight = network.token_out.weight
        shape = (config.layers, 1, config.heads, length, config.head_dim)
        self._keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self._values = torch.zeros_like(self._keys)
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=weight.device)
        self._position = torch.zeros(1, dtype=torch.int64, device=weight.device)
        self._out = torch.zeros(length, dtype=torch.int64, device=weight.device)
        self._before, self._after = before_attention, after_attention
        self.step: Callable[[], None] = self._step
        if weight.is_cuda:
            self._before = torch.compile(before_attention, fullgraph=True)
            self._after = torch.compile(after_attention, fullgraph=True)
            self.step = self._captured()

    @torch.inference_mode()
    def generate(self, prompt: list[int], new: int) -> list[int]:
        """`new` tokens after the prompt."""
        self._position.zero_()
        for token in prompt[:-1]:
            self._token.fill_(token)
            self.step()
        self._token.fill_(prompt[-1])
        for _ in range(new):
            self.step()
        return self._out[len(prompt) : len(prompt) + new].tolist()

    def _step(self) -> None:
        """Read the token at the position, write its successor behind it, and go there."""
        network = self._network
        x = network.embedding(self._token)  # (1, 1, D)
        table = rotation(self._position, network.frequencies)
        seen = torch.arange(self._length, device=x.device) <= self._position
        for layer, block in enumerate(cast("list[Block]", list(network.blocks))):
            q, k, v = self._before(x, block, table)
            keys, values = self._keys[layer], self._values[layer]
            keys.index_copy_(2, self._position, k)
            values.index_copy_(2, self._position, v)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[None, None, None])
            x = self._after(x, out, block)
        token = network.token_out(network.out_norm(x)).argmax(-1)
        self._token.copy_(token)
        self._position.add_(1)
        self._out.index_copy_(0, self._position, token[0])

    def _captured(self) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            self._step()
        return graph.replay


def before_attention(x: Tensor, block: Block, table: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values (1, H, 1, head_dim)."""
    qkv = block.qkv(block.attention_norm(x)).unflatten(-1, (3, block.heads, -1))
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    return rotate_halves(q, table), rotate_halves(k, table), v


def after_attention(x: Tensor, out: Tensor, block: Block) -> Tensor:
    """The rest of a block."""
    x = x + block.attention_out(out.transpose(1, 2).flatten(2))
    gate, value = block.ffn_in(block.ffn_norm(x)).chunk(2, dim=-1)
    return x + block.ffn_out(F.silu(gate) * value)
