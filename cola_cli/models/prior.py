"""The prior: a block-causal diffusion transformer over noisy latents.

Layer for layer the released code's `ColaDiTModel`: pre-norm blocks with AdaLN (shift and scale before,
gate after), per-head LayerNorm of queries and keys, interleaved rotary positions, GELU-tanh MLP. What
depends on the timestep alone is computed once per distinct timestep, not per token.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_cli.flow import path
from cola_cli.models.attention import Attend, CleanCopy, NoisyCopy, earlier_length
from cola_cli.models.chain import Chain
from cola_cli.models.config import TIMESTEP_CHANNELS, PriorConfig
from cola_cli.models.modulation import (
    LayerModulation,
    LevelLayerModulation,
    LevelModulation,
    Modulation,
)
from cola_cli.models.rotary import Rotation, rotary_frequencies, rotate_interleaved, rotation, wide
from cola_cli.models.transformer import INIT_STD

TIMESTEP_SCALE = 1000.0  # t in [0, 1] is embedded as 1000 t


# keys and values in every layer, (B, H, n, head_dim) each
History = list[tuple[Tensor, Tensor]]


class Said(NamedTuple):
    """What the positions before blocks said of the first positions of these, see `Prior.hidden`.

    hidden (B, blocks, D); `known` (B, n) bool, if given, is where the position before is of the same piece.
    """

    hidden: Tensor
    block_size: int
    known: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        """What the position before each of x (B, n, D) said of it, (B, n, D)."""
        said = following(x)
        said[:, :: self.block_size] = self.hidden
        return said if self.known is None else said * self.known.unsqueeze(-1)


class View(NamedTuple):
    """The rotary table of some positions, whom they see, and what was said of them, if anything."""

    table: Rotation
    attend: Attend
    said: Said | None = None


class WideLinear(nn.Linear):
    """A linear layer that computes in float32 at least, whatever the precision of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        weight = wide(self.weight)
        return F.linear(x.to(weight.dtype), weight, wide(self.bias))


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, config: PriorConfig, layer: int) -> None:
        super().__init__()
        dim, inner = config.dim, config.heads * config.head_dim
        self.layer = layer
        self.heads = config.heads
        self.eps = config.norm_eps
        self.qkv = nn.Linear(dim, 3 * inner, bias=config.qk_bias)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
        self.k_norm = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
        self.attention_out = nn.Linear(inner, dim, bias=config.qk_bias)
        self.mlp_in = nn.Linear(dim, config.expand_ratio * dim)
        self.mlp_out = nn.Linear(config.expand_ratio * dim, dim)
        self.modulation = WideLinear(dim, 6 * dim)

    def forward(
        self,
        x: Tensor,
        modulation: LayerModulation | LevelLayerModulation,
        view: View,
        keys_only: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, n, D) -> (B, n, D), and the keys and values (B, H, n, head_dim).

        With `keys_only` the block stops once `view.attend` has seen keys and values; x comes back as it was.
        """
        table, attend = view.table, view.attend
        h = modulation.norm(self._normed(x), 0)
        if keys_only:
            k, v = self._keys_values(h, table)
            attend(self.layer, k[:, :, :0], k, v)
            return x, k, v
        q, k, v = self._queries_keys_values(h, table)
        out = attend(self.layer, q, k, v)  # (B, H, n, head_dim)
        x = x + modulation.gate(self.attention_out(out.transpose(1, 2).flatten(2)), 2)
        h = modulation.norm(self._normed(x), 3)
        h = self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh"))
        return x + modulation.gate(h, 5), k, v

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def _keys_values(self, h: Tensor, table: Rotation) -> tuple[Tensor, Tensor]:
        inner = self.qkv.out_features // 3
        bias = None if self.qkv.bias is None else self.qkv.bias[inner:]
        kv = F.linear(h, self.qkv.weight[inner:], bias).unflatten(-1, (2, self.heads, -1))
        k, v = (part.transpose(1, 2) for part in kv.unbind(2))  # (B, H, n, head_dim)
        return rotate_interleaved(self.k_norm(k), table).to(v.dtype), v

    def _queries_keys_values(self, h: Tensor, table: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1))  # (B, n, 3, H, head_dim)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, n, head_dim)
        q = rotate_interleaved(self.q_norm(q), table)
        k = rotate_interleaved(self.k_norm(k), table)
        return q, k.to(v.dtype), v


class Prior(nn.Module):
    """Velocity v(z_t, t; history) of the linear path z_t = (1 - t) z_0 + t z_1, v = z_1 - z_0."""

    frequencies: Tensor
    # of `prediction: tokens`, on the prior's scale: the mean latent of each token (vocab, d), and the
    # variance (d,) of latents about these means
    codes: Tensor
    code_variance: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.latent_in = nn.Linear(config.latent_dim, dim)
        self.timestep_in = WideLinear(TIMESTEP_CHANNELS, dim)
        self.timestep_hidden = WideLinear(dim, dim)
        self.timestep_out = WideLinear(dim, dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.out_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.out_modulation = WideLinear(dim, 2 * dim)
        # what the output means is `config.prediction`
        self.latent_out = nn.Linear(dim, config.out_dim)
        self.estimate_in: nn.Linear | None = None
        if config.self_conditioning:
            self.estimate_in = nn.Linear(config.latent_dim, dim, bias=False)
        if config.prediction == "tokens":
            self.register_buffer("codes", torch.zeros(config.vocab_size, config.latent_dim))
            self.register_buffer("code_variance", torch.zeros(config.latent_dim))
        self.token_embed: nn.Embedding | None = None
        self.own_out: nn.Linear | None = None
        if config.evidence:
            self.token_embed = nn.Embedding(config.vocab_size, dim)
            self.own_out = nn.Linear(dim, dim, bias=False)
        self.chain: Chain | None = None
        if config.chain:
            self.chain = Chain(dim, config.vocab_size, config.chain)
        self.register_buffer("frequencies", rotary_frequencies(config.rope_dim, 10_000.0))
        self.initialise()

    def initialise(self) -> None:
        """AdaLN and output projection zero (each block starts as the identity), the rest Xavier.

        With `evidence` as a baseline begins, so that it learns as fast: normal with a small deviation, and
        gates of one.
        """
        if self.latent_in.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if self.config.evidence:
                    nn.init.normal_(module.weight, std=INIT_STD)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for linear in (self.timestep_in, self.timestep_hidden, self.timestep_out):
            nn.init.normal_(linear.weight, std=0.02)
        for block in self.each_block():
            nn.init.zeros_(block.modulation.weight)
            if self.config.evidence:
                gates = block.modulation.bias.detach().unflatten(0, (6, -1))[2::3]
                nn.init.ones_(gates)
        nn.init.zeros_(self.out_modulation.weight)
        if self.config.prediction == "tokens":
            nn.init.normal_(self.latent_out.weight, std=0.02)
            nn.init.zeros_(self.latent_out.weight[self.config.vocab_size :])
        else:
            nn.init.zeros_(self.latent_out.weight)
        if self.estimate_in is not None:
            nn.init.zeros_(self.estimate_in.weight)
        if self.token_embed is not None:
            nn.init.normal_(self.token_embed.weight, std=INIT_STD)
        if self.own_out is not None:
            nn.init.zeros_(self.own_out.weight)
        if self.chain is not None:
            self.chain.initialise()

    def each_block(self) -> list[Block]:
        """The blocks, as a list of their type."""
        return cast("list[Block]", list(self.blocks))

    def embed_timesteps(self, t: Tensor) -> Tensor:
        """t (...) in [0, 1] -> (..., D)."""
        h = F.silu(self.timestep_in(timestep_sinusoid(t)))
        return self.timestep_out(F.silu(self.timestep_hidden(h)))

    def modulation(self, t: Tensor) -> Modulation:
        """The modulation of timesteps t in [0, 1].

        t (groups,): the same for all rows, also a table over a step grid;
        t (B, groups): own timesteps for each row. A group is n / groups consecutive positions.
        """
        t = t.unsqueeze(0) if t.dim() == 1 else t
        condition = F.silu(self.embed_timesteps(t))  # (B or 1, groups, D)
        layers = [block.modulation(condition) for block in self.each_block()]
        blocks = torch.stack(layers).unflatten(-1, (6, -1))  # (layers, B, groups, 6, D)
        output = self.out_modulation(condition).unflatten(-1, (2, -1))  # (B, groups, 2, D)
        if (dtype := self.latent_in.weight.dtype).itemsize < 4:  # weights in half precision
            blocks, output = blocks.to(dtype), output.to(dtype)
        return Modulation(
            blocks.permute(0, 3, 1, 2, 4).unsqueeze(-2), output.permute(2, 0, 1, 3).unsqueeze(-2), t
        )

    def level_modulation(self, times: Tensor, levels: Tensor) -> LevelModulation:
        """The modulation of positions whose timesteps are times[levels]; times (count,), levels (B, n)."""
        table = self.modulation(times)
        return LevelModulation(table.blocks[:, :, 0, :, 0], table.output[:, 0, :, 0], times, levels)

    def rotation(self, positions: Tensor) -> Rotation:
        """The rotary table of positions (n,) or (B, n)."""
        return rotation(positions, self.frequencies)

    def view(self, positions: Tensor, attend: Attend) -> View:
        """Positions (n,) or (B, n), and whom they see."""
        return View(self.rotation(positions), attend)

    def clean_estimate(
        self, output: Tensor, z_t: Tensor, t: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """E[z_0 | z_t] (B, n, d) from the network's output (B, n, out_dim) at t, broadcast to (B, n, 1).

        For `prediction: tokens` sum_k p_k c_k with p the softmax of `token_logits`, c_k the codes; with
        `residual` the rest of the output added. With a chain z_t, but in the first group of a block that is
        still noise, which is the same one in all rows, the codes of the tokens that the chain chooses.
        """
        if self.chain is not None:
            start = 0  # of a single pass, so that nothing is read back from a GPU
            if self.config.passes > 1:
                start = int((t.expand(*z_t.shape[:2], 1)[0] < 0.5).sum())
            group = slice(start, start + self.config.group_size)
            chosen = self.chain.choose(
                output[:, group], z_t[:, group], self.latent_out, temperature
            )
            found = self.codes[chosen.clamp(max=len(self.codes) - 1)]
            known = (chosen < len(self.codes)).unsqueeze(-1)
            estimate = z_t.to(found.dtype, copy=True)
            estimate[:, group] = torch.where(known, found, torch.nan)
            return estimate
        if self.config.prediction == "tokens":
            chances = self.token_logits(output, z_t, t, temperature).softmax(-1)
            code = chances @ self.codes.to(output.dtype)
            return code + output[..., len(self.codes) :] if self.config.residual else code
        if self.config.prediction == "latent":
            return output
        return path.clean_estimate(z_t, t, output)

    def logits(self, output: Tensor) -> Tensor:
        """Those of the tokens (..., vocab) in the output (..., out_dim) of a prior that predicts them."""
        return output[..., : len(self.codes)]

    def token_logits(
        self, output: Tensor, z_t: Tensor, t: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Of p(token | z_t, history), (..., vocab), from the output (..., out_dim) for z_t (..., d) at t.

        With `evidence` the output is p(token | history, the block's other latents), which the temperature is
        of, and Bayes' rule adds log p(z_t | token).
        """
        logits = self.logits(output)
        if temperature != 1.0:
            logits = logits / temperature
        return self._with_evidence(logits, z_t, t) if self.config.evidence else logits

    def _with_evidence(self, logits: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """logits (..., vocab) + log p(z_t | token), but for what all tokens share; z_t (..., d), t (..., 1).

        z_t = (1 - t) z_0 + t z_1 of a z_0 about the token's code c with `code_variance` s is normal about
        (1 - t) c with the variance (1 - t)^2 s + t^2.
        """
        z_t, t = wide(z_t), wide(t)
        precision = 1 / ((1 - t) ** 2 * self.code_variance + t.clamp(min=path.T_MIN) ** 2)
        linear = (1 - t) * z_t * precision
        square = (-0.5 * (1 - t) ** 2 * precision).expand_as(linear)
        seen, codes = torch.cat((linear, square), -1), self.codes.to(z_t.dtype)
        known = torch.cat((codes, codes.square()), -1).T
        with torch.autocast(z_t.device.type, enabled=False):  # differences of large numbers
            rows = wide(logits).flatten(0, -2)
            return torch.addmm(rows, seen.flatten(0, -2), known).view_as(logits)

    def nearest_tokens(self, z: Tensor) -> Tensor:
        """The tokens (B, n) whose codes are nearest to z (B, n, d), for a prior with a token head."""
        codes = self.codes.to(z.dtype)
        known = torch.cat((2 * codes, -codes.square().sum(-1, keepdim=True)), 1)
        with torch.autocast(z.device.type, enabled=False):
            near = F.pad(z.flatten(0, -2), (0, 1), value=1.0) @ known.T
        return near.argmax(-1).view(z.shape[:-1])

    def with_tokens(self, x: Tensor, z: Tensor, clean: Tensor | None = None) -> Tensor:
        """x (B, n, D) of latents z (B, n, d) with the embeddings of the tokens that clean ones stand for.

        clean (B, n) bool: which are clean; None: all.
        """
        assert self.token_embed is not None
        read = x + self.token_embed(self.nearest_tokens(z))
        return read if clean is None else torch.where(clean.unsqueeze(-1), read, x)

    def to_velocity(
        self, output: Tensor, z_t: Tensor, t: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """dz/dt (B, n, d) from the network's output (B, n, out_dim) at t, broadcast to (B, n, 1)."""
        if self.config.prediction == "velocity":
            return output
        return path.to_velocity(self.clean_estimate(output, z_t, t, temperature), z_t, t)

    def velocity(
        self, z_t: Tensor, t: Tensor, view: View, estimate: Tensor | None = None
    ) -> Tensor:
        """dz/dt of the flow at (z_t, t): z_t (B, n, d) -> (B, n, d).

        t (groups,) or (B, groups), a group being n / groups consecutive positions; `estimate` (B, n, d) is
        the previous clean estimate of a self-conditioned prior.
        """
        output = self(z_t, self.modulation(t), view, estimate)
        times = (t.unsqueeze(0) if t.dim() == 1 else t).float()
        times = times.repeat_interleave(z_t.shape[1] // times.shape[1], 1).unsqueeze(-1)
        return self.to_velocity(output, z_t, times)

    def teacher_forced(
        self, z0: Tensor, block_size: int, copies: int = 1, pieces: Tensor | None = None
    ) -> View:
        """The noisy blocks of a whole sequence, which see themselves and the clean latents before.

        z0 (B, N, d), each sequence with so many noisy copies, one row after another. Cola DLM paper, figure
        1: positions [clean without its last block | noisy], shared numbers. The clean copy goes first, as a
        block-causal pass at t = 0. pieces (B, N): positions see those of their piece alone.
        """
        hidden, history = self.clean_copy(z0, block_size, pieces=pieces)
        return self.noisy_copies(history, z0, block_size, copies, pieces, hidden)

    def clean_copy(
        self, z0: Tensor, block_size: int, whole: bool = False, pieces: Tensor | None = None
    ) -> tuple[Tensor | None, History]:
        """What the blocks of z0 (B, N, d) but the last one are remembered by, see `remember`."""
        device = z0.device
        clean = earlier_length(z0.shape[1], block_size)
        own = 1 if self.config.causal_history else block_size
        return self.remember(
            z0[:, :clean],
            self.modulation(torch.zeros(1, device=device)),
            self.view(torch.arange(clean, device=device), CleanCopy(clean, own, device, pieces)),
            whole,
        )

    def noisy_copies(
        self,
        history: History,
        z0: Tensor,
        block_size: int,
        copies: int,
        pieces: Tensor | None = None,
        hidden: Tensor | None = None,
        window: Tensor | None = None,
    ) -> View:
        """The noisy blocks behind the `history` of z0, see `teacher_forced`.

        hidden (B, n, D): what `clean_copy` gave. window (m,): the positions of the blocks, if not all.
        """
        length, device = z0.shape[1], z0.device
        places = torch.arange(length, device=device) if window is None else window
        if copies > 1:
            history = [
                (k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0)) for k, v in history
            ]
            pieces = None if pieces is None else pieces.repeat_interleave(copies, 0)
        attend = NoisyCopy(history, places, length, block_size, device, pieces)
        view = self.view(places, attend)
        if hidden is None or not self.config.evidence:
            return view
        said, known = F.pad(hidden[:, block_size - 1 :: block_size], (0, 0, 1, 0)), None
        if pieces is not None:
            known = F.pad(pieces[:, 1:] == pieces[:, :-1], (1, 0))[:, places]
        if window is not None:
            said = said.index_select(1, window[::block_size] // block_size)
        return view._replace(said=Said(said.repeat_interleave(copies, 0), block_size, known))

    def forward(
        self,
        z: Tensor,
        modulation: Modulation | LevelModulation,
        view: View,
        estimate: Tensor | None = None,
    ) -> Tensor:
        """What the network predicts for z (B, n, d), see `prediction` of its config: (B, n, out_dim).

        With a chain, which is to follow, the hidden states (B, n, D).
        """
        hidden = self.hidden(z, modulation, view, estimate)
        return hidden if self.chain is not None else self.latent_out(hidden)

    def hidden(
        self,
        z: Tensor,
        modulation: Modulation | LevelModulation,
        view: View,
        estimate: Tensor | None = None,
    ) -> Tensor:
        """z (B, n, d) -> (B, n, D), what the last linear layer reads.

        With evidence what the position before says of the next token, as the clean copy does, and what is
        added to it here.
        """
        x = self.latent_in(z.to(self.latent_in.weight.dtype))
        if self.config.evidence:
            x = self.with_tokens(x, z, modulation.times_of(*z.shape[:2]) == 0)
        if self.estimate_in is not None and estimate is not None:
            x = x + self.estimate_in(estimate.to(x.dtype))
        for block in self.each_block():
            x, _, _ = block(x, modulation.layer(block.layer), view)
        x = modulation.last().norm(self.out_norm(x), 0)
        if self.own_out is None:
            return x
        said = following(x) if view.said is None else view.said.before(x)
        return said + self.own_out(x)

    def remember(
        self, z: Tensor, modulation: Modulation, view: View, whole: bool = False
    ) -> tuple[Tensor | None, History]:
        """What the last linear layer would read of z (B, n, d), and its keys and values.

        Unless `whole`, or with evidence, the last block computes keys and values alone, attention gets no
        queries from it, and the first is None.
        """
        whole = whole or self.config.evidence
        x = self.latent_in(z.to(self.latent_in.weight.dtype))
        if self.config.evidence:
            x = self.with_tokens(x, z)
        kept = []
        for block in self.each_block():
            last = block.layer + 1 == self.config.layers
            x, k, v = block(x, modulation.layer(block.layer), view, last and not whole)
            kept.append((k, v))
        return modulation.last().norm(self.out_norm(x), 0) if whole else None, kept


def following(x: Tensor) -> Tensor:
    """x (B, n, D) a position later, and 0 at the first."""
    return F.pad(x[:, :-1], (0, 0, 1, 0))


def timestep_sinusoid(t: Tensor) -> Tensor:
    """[sin | cos] of 1000 t at 128 frequencies from 1 to 1/10000, float32 (..., 256)."""
    half = TIMESTEP_CHANNELS // 2
    t = wide(t)
    steps = torch.arange(half, dtype=t.dtype, device=t.device)
    angles = (t * TIMESTEP_SCALE).unsqueeze(-1) * torch.exp(steps * (-math.log(10_000.0) / half))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
