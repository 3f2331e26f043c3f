"""Time generation: cola's engine against a plain sampler with the same weights, noise and tokens out.

    python tests/bench/sample.py [--json] [--batches 1 16 64] [--rounds 3 2 1] [--new 128] [--fused]
        [--processor-time]

The two take turns block by block, so that both meet the same machine; of several rounds each block counts
with its shortest time. Every block's tokens are compared. The last line with --json is one object: `ratio`
maps each batch size to plain seconds over cola's, `flops_use` to useful operations over the machine's matrix
rate, the best that was measured between blocks. With --fused the plain sampler may use a fused attention
kernel, under its dense mask. --processor-time counts the processor's seconds instead of the clock's, which
says more on a machine that others use (with COLA_THREADS=1, as threads that wait for one another count too).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli.machine import threads

THREADS = threads.prepare_torch()

import torch
from torch import Tensor

from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.requests import Request
from cola_cli.settings.sample import SamplingOptions
from tests.oracles import plain_sample
from tests.oracles.plain_sample import Weights

Clock = Callable[[], float]  # seconds

PROMPT, STEPS, GUIDANCE = 64, 16, 7.0
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


def cola_blocks(engine: Engine, prompts: Tensor, noise: Tensor) -> Iterator[Tensor]:
    """Token ids (B, b) of each block."""
    requests = [Request(i, row.tolist(), noise[i]) for i, row in enumerate(prompts)]
    size = PRIOR.block_size
    done = []
    for _, generation in engine.run(requests):
        done.append(generation.ids[-size:])
        if len(done) == len(requests):
            yield torch.tensor(done)
            done = []


def useful_flops(batch: int, new: int) -> float:
    """Operations the mathematics needs: 2 per weight and position, attention over what is visible."""
    b = PRIOR.block_size
    inner = PRIOR.heads * PRIOR.head_dim
    per_position = PRIOR.layers * (4 * PRIOR.dim * inner + 2 * PRIOR.expand_ratio * PRIOR.dim**2)
    decoder = VAE.decoder_layers * (4 * VAE.dim**2 + 3 * VAE.dim * VAE.ffn_dim // 2)
    decoder += VAE.dim * VAE.vocab_size + VAE.dim**2
    total = 2.0 * batch * PROMPT * (per_position + 2 * decoder)
    for block in range(new // b):
        history = PROMPT + block * b
        scores = 4 * PRIOR.layers * inner * b
        total += batch * STEPS * (2 * 2 * b * per_position + scores * (history + 2 * b))
        total += batch * (2 * b * per_position + scores * (history + b))  # commit
        total += batch * b * 2 * decoder
    return total


def matrix_rate(clock: Clock) -> float:
    """Operations a second of a product of the prior's size, the best of some."""
    left, right = torch.randn(512, PRIOR.dim), torch.randn(PRIOR.dim, 4 * PRIOR.dim)
    seconds = []
    for _ in range(10):
        started = clock()
        left @ right
        seconds.append(clock() - started)
    return 2.0 * left.numel() * right.shape[1] / min(seconds)


@dataclass
class Times:
    """Shortest seconds of each block so far, by sampler, and the best matrix rate seen meanwhile."""

    cola: list[float]
    plain: list[float]
    rate: float = 0.0


def compare(
    batch: int, new: int, rounds: int, fused: bool, vae: TextVAE, prior: Prior, clock: Clock
) -> Times:
    """Run both samplers in turns. Raises AssertionError where their tokens differ."""
    weights, prior_weights = dict(vae.state_dict()), dict(prior.state_dict())
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(0, VAE.vocab_size, (batch, PROMPT), generator=generator)
    blocks = new // PRIOR.block_size
    noise = torch.randn(batch, blocks, PRIOR.block_size, PRIOR.latent_dim, generator=generator)
    options = SamplingOptions(max_new_tokens=new, steps=STEPS, guidance=GUIDANCE)
    engine = Engine(vae, prior, options, batch)
    next(cola_blocks(engine, prompts, noise))  # warm
    times = Times([math.inf] * blocks, [math.inf] * blocks)
    for _ in range(rounds):
        ours = cola_blocks(engine, prompts, noise)
        plain = plain_blocks(vae, weights, prior_weights, prompts, noise, fused)
        for block in range(blocks):
            times.rate = max(times.rate, matrix_rate(clock))
            found, seconds = timed(ours, clock)
            times.cola[block] = min(times.cola[block], seconds)
            expected, seconds = timed(plain, clock)
            times.plain[block] = min(times.plain[block], seconds)
            same = (found == expected).float().mean().item()
            assert same == 1.0, f"only {same:.4f} of the tokens of block {block} agree"
    return times


def plain_blocks(
    vae: TextVAE, weights: Weights, prior: Weights, prompts: Tensor, noise: Tensor, fused: bool
) -> Iterator[Tensor]:
    """Token ids (B, b) of each block; the prompts are encoded by cola's encoder."""
    prefixes = vae.encode(prompts).mean
    yield from plain_sample.generate(
        weights, VAE, prior, PRIOR, prefixes, noise, STEPS, GUIDANCE, fused
    )


def timed(blocks: Iterator[Tensor], clock: Clock) -> tuple[Tensor, float]:
    """The next block and the seconds it took."""
    started = clock()
    return next(blocks), clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--new", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 2, 1], help="for each batch")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--processor-time", action="store_true")
    arguments = parser.parse_args()
    new = arguments.new
    clock = time.process_time if arguments.processor_time else time.perf_counter
    vae, prior = networks()
    print(THREADS)
    ratio: dict[str, float] = {}
    use: dict[str, float] = {}
    for place, batch in enumerate(arguments.batches):
        rounds = arguments.rounds[min(place, len(arguments.rounds) - 1)]
        with torch.inference_mode():
            times = compare(batch, new, rounds, arguments.fused, vae, prior, clock)
        cola, plain = sum(times.cola), sum(times.plain)
        ratio[str(batch)] = round(plain / cola, 3)
        use[str(batch)] = round(useful_flops(batch, new) / cola / times.rate, 3)
        print(
            f"batch {batch}: cola {batch * new / cola:.1f} tokens/s, plain {batch * new / plain:.1f},"
            f" ratio {plain / cola:.2f}; first block after {times.cola[0] * 1000:.0f} ms;"
            f" {STEPS / PRIOR.block_size:.2f} passes a token; useful operations"
            f" {100 * use[str(batch)]:.0f} % of the matrix rate of {times.rate / 1e9:.0f} GFLOP/s",
            flush=True,
        )
    if arguments.json:
        print(json.dumps({"ratio": ratio, "flops_use": use}))


if __name__ == "__main__":
    main()
