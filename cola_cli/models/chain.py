"""The tokens of a block, or of a group of its positions, one after another, from one pass of the prior.

A pass that sees only noise tells of each position what may stand there, but not together with which others.
A small recurrent network takes the choices from left to right into account:

    p(x_i | h, x_<i) = softmax(W (h_i + B gelu(A h_i + s_i)) / temperature)
    s_1 = 0,  s_(i+1) = a s_i + E[x_i]

with h_i the prior's last hidden states, W its token head, and a in (0, 1) a factor a channel. What is drawn
follows from the noise: x_i is the token at which the distribution function reaches Phi(z_i), z_i the first
channel of the noise at i.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_cli.models.rotary import wide

EMBEDDING_STD = 0.5


class Chain(nn.Module):
    """s, A, B, E and a of the formula above; W stays with the prior."""

    def __init__(self, dim: int, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, width))
        self.decay = nn.Parameter(torch.empty(width))  # logits of a
        self.into = nn.Linear(dim, width)
        self.out = nn.Linear(width, dim, bias=False)

    def initialise(self) -> None:
        """As if there were no chain: B is zero."""
        nn.init.normal_(self.embedding, std=EMBEDDING_STD)
        nn.init.zeros_(self.decay)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """hidden (B, b, D) of groups and the tokens (B, b) that stand there -> what W reads, (B, b, D)."""
        decay, states = self.decay.sigmoid(), [hidden.new_zeros(len(hidden), len(self.decay))]
        for embedded in self.embedding[tokens[:, :-1]].unbind(1):
            states.append(decay * states[-1] + embedded)
        return self._read(hidden, self.into(hidden), torch.stack(states, 1))

    def choose(self, hidden: Tensor, noise: Tensor, head: nn.Linear, temperature: float) -> Tensor:
        """Tokens (B, b) of groups by their hidden states (B, b, D) and noise (B, b, d).

        The vocabulary's size where there is no distribution, for weights that are not finite.
        """
        hidden = hidden.to(head.weight.dtype)
        inner, decay = self.into(hidden), self.decay.sigmoid()
        reached = torch.special.ndtr(wide(noise[..., :1]))
        state, chosen = torch.zeros_like(inner[:, 0]), []
        for place in range(hidden.shape[1]):
            logits = wide(head(self._read(hidden[:, place], inner[:, place], state)))
            below = (logits / temperature).softmax(-1).cumsum(-1)
            tokens = torch.searchsorted(below, reached[:, place] * below[:, -1:])[:, 0]
            chosen.append(tokens)
            embedded = self.embedding[tokens.clamp(max=below.shape[-1] - 1)]
            state = torch.addcmul(embedded, decay, state)
        return torch.stack(chosen, 1)

    def _read(self, hidden: Tensor, inner: Tensor, state: Tensor) -> Tensor:
        return hidden + self.out(F.gelu(inner + state, approximate="tanh"))
