"""Time generation: cola's engine against a plain sampler with the same weights, noise and tokens out.

    python tests/bench/sample.py [--json] [--batches 1 16 64] [--rounds 2]

The two alternate in one run. The tokens are compared first. The last line with --json is one object:
`ratio` maps each batch size to plain seconds over cola's, `flops_use` to useful operations over the machine's
measured matrix rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli import runtime

THREADS = runtime.prepare_torch()

import torch
from torch import Tensor

from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.options import SamplingOptions
from cola_cli.sampling.rows import Request
from cola_cli.training.flops import matrix_rate
from tests.bench import plain_sample

PROMPT, NEW, STEPS, GUIDANCE = 64, 128, 16, 7.0
PRIOR = PriorConfig(dim=256, heads=4, head_dim=64, rope_dim=48, layers=6)
VAE = TextVAEConfig(
    vocab_size=4096, encoder_layers=2, decoder_layers=2, dim=256, ffn_dim=1024, heads=4
)


def networks() -> tuple[TextVAE, Prior]:
    """Both networks with random weights, none of them zero, so that tokens depend on everything."""
    torch.manual_seed(0)
    vae, prior = TextVAE(VAE), Prior(PRIOR)
    with torch.no_grad():
        for parameter in (*vae.parameters(), *prior.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return vae.eval(), prior.eval()


def cola_tokens(engine: Engine, prompts: Tensor, noise: Tensor) -> tuple[Tensor, float]:
    """Token ids (B, NEW) and the seconds until the first block was there."""
    started = time.perf_counter()
    first = 0.0
    ids: dict[int, list[int]] = {}
    requests = [Request(i, row.tolist(), noise[i]) for i, row in enumerate(prompts)]
    for request, generation in engine.run(requests):
        first = first or time.perf_counter() - started
        ids[request.item] = generation.ids
    return torch.tensor([ids[i] for i in range(len(prompts))]), first


def useful_flops(batch: int) -> float:
    """Operations the mathematics needs: 2 per weight and position, attention over what is visible."""
    b = PRIOR.block_size
    inner = PRIOR.heads * PRIOR.head_dim
    per_position = PRIOR.layers * (4 * PRIOR.dim * inner + 2 * PRIOR.expand_ratio * PRIOR.dim**2)
    decoder = VAE.decoder_layers * (4 * VAE.dim**2 + 3 * VAE.dim * VAE.ffn_dim // 2)
    decoder += VAE.dim * VAE.vocab_size + VAE.dim**2
    total = 2.0 * batch * PROMPT * (per_position + 2 * decoder)
    for block in range(NEW // b):
        history = PROMPT + block * b
        scores = 4 * PRIOR.layers * inner * b
        total += batch * STEPS * (2 * 2 * b * per_position + scores * (history + 2 * b))
        total += batch * (2 * b * per_position + scores * (history + b))  # commit
        total += batch * b * 2 * decoder
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    vae, prior = networks()
    weights, prior_weights = dict(vae.state_dict()), dict(prior.state_dict())
    options = SamplingOptions(max_new_tokens=NEW, steps=STEPS, guidance=GUIDANCE)
    rate = matrix_rate("cpu", False, PRIOR.dim, 512)
    print(f"{THREADS}; matrix products run at {rate / 1e9:.0f} GFLOP/s")
    ratio: dict[str, float] = {}
    use: dict[str, float] = {}
    for batch in arguments.batches:
        generator = torch.Generator().manual_seed(batch)
        prompts = torch.randint(0, VAE.vocab_size, (batch, PROMPT), generator=generator)
        noise = torch.randn(
            batch, NEW // PRIOR.block_size, PRIOR.block_size, PRIOR.latent_dim, generator=generator
        )
        engine = Engine(vae, prior, options, batch)
        seconds: dict[str, list[float]] = {"cola": [], "plain": []}
        first = 0.0
        with torch.inference_mode():
            for _ in range(arguments.rounds):
                started = time.perf_counter()
                ours, first = cola_tokens(engine, prompts, noise)
                seconds["cola"].append(time.perf_counter() - started)
                started = time.perf_counter()
                prefixes = vae.encode(prompts).mean
                plain = plain_sample.generate(
                    weights, VAE, prior_weights, PRIOR, prefixes, noise, STEPS, GUIDANCE
                )
                seconds["plain"].append(time.perf_counter() - started)
                same = (ours == plain).float().mean().item()
                assert same == 1.0, f"only {same:.4f} of the tokens agree"
        took = {name: statistics.median(values) for name, values in seconds.items()}
        pairs = zip(seconds["plain"], seconds["cola"], strict=True)
        ratio[str(batch)] = round(statistics.median(p / c for p, c in pairs), 3)
        use[str(batch)] = round(useful_flops(batch) / took["cola"] / rate, 3)
        print(
            f"batch {batch}: cola {batch * NEW / took['cola']:.1f} tokens/s, plain"
            f" {batch * NEW / took['plain']:.1f}, ratio {ratio[str(batch)]:.2f}; first block after"
            f" {first * 1000:.0f} ms; {STEPS / PRIOR.block_size:.2f} passes a token; useful operations"
            f" {100 * use[str(batch)]:.0f} % of the matrix rate"
        )
    if arguments.json:
        print(json.dumps({"ratio": ratio, "flops_use": use}))


if __name__ == "__main__":
    main()
