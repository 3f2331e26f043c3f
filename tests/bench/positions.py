"""Where a prior with a token head does not know the token: its cross-entropy by position in a block and time.

    python tests/bench/positions.py PRIOR LATENTS [--sequences 32] [--json]

Every position of the validation sequences' blocks but the first is brought to t = 1, 0.75, 0.5 and 0.25, the
others of its block to where the stagger has them then. Nats a token; at t = 1 and the first position of a
staggered block it is what an autoregressive model's loss is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.kinds import Latents
from cola_cli.corpus.sequences import Sequences
from cola_cli.flow.gaussian import sample
from cola_cli.flow.path import interpolate, position_times
from cola_cli.models.prior import Prior
from cola_cli.models.rotary import wide
from cola_cli.weights.artifact import load_prior
from cola_cli.weights.configs import vae_config

TIMES = (1.0, 0.75, 0.5, 0.25)


@torch.inference_mode()
def losses(prior: Prior, z0: Tensor, tokens: Tensor, real: Tensor) -> list[list[float]]:
    """Of each position in a block at each of TIMES; z0 (B, N, d), tokens and `real` ones (B, N)."""
    config, (rows, length) = prior.config, tokens.shape
    block, stagger = config.block_size, config.stagger
    view = prior.teacher_forced(z0, block)
    places = torch.arange(length) % block
    later = torch.arange(length) >= block
    found: list[list[float]] = []
    for place in range(block):
        asked = (real & later & (places == place)).flatten()
        found.append([])
        for t in TIMES:
            offset = 1 - place / max(block - 1, 1)
            times = position_times(
                torch.tensor((t + stagger * offset) / (1 + stagger)), stagger, block
            )
            own = times[places].unsqueeze(-1)  # (N, 1)
            z = interpolate(z0, torch.randn_like(z0), own)
            output = prior(z, prior.level_modulation(times, places.expand(rows, -1)), view)
            logits = prior.token_logits(output, z, own).flatten(0, 1)
            found[-1].append(F.cross_entropy(logits[asked], tokens.flatten()[asked]).item())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prior", type=Path)
    parser.add_argument("latents", type=Path)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.manual_seed(0)
    latents = Latents.open(asked.latents)
    rows = next(iter(Sequences(latents, "validation").batches(asked.sequences)))
    mean, logvar = wide(torch.tensor(rows.mean)), wide(torch.tensor(rows.logvar))
    z0 = vae_config(latents).to_prior(sample(mean, logvar, torch.randn_like(mean)))
    tokens = torch.tensor(rows.tokens, dtype=torch.int64)
    real = torch.arange(tokens.shape[1]) < torch.tensor(rows.lengths)[:, None]
    found = losses(load_prior(Artifact.open(asked.prior)), z0, tokens, real)
    if asked.json:
        print(json.dumps({"times": TIMES, "cross_entropy": found}))
        return
    print("position " + " ".join(f"t = {t:<6}" for t in TIMES))
    for place, own in enumerate(found):
        print(f"{place:<8} " + " ".join(f"{nats:<10.3f}" for nats in own))


if __name__ == "__main__":
    main()
