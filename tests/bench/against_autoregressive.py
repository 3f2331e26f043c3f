"""Time a prior of few passes against an autoregressive transformer of its size, each with its best sampler.

    python tests/bench/against_autoregressive.py [--passes 4] [--prediction velocity] [--json]
        [--batches 1 16] [--rounds 5] [--guidance 1] [--threads 2] [--processor-time]

Random weights: what is timed does not depend on them. The prior has blocks of 16, 6 layers of width 256 and
the decoder of its VAE; the transformer is matched to its parameters as the paper does, has the same tokens, a
static cache of keys and values, and one pass a token. Prompts of 64 tokens, 128 new ones, greedy. The two
take turns, 16 tokens of every row at a time, so that both meet the same machine; of several rounds every such
stretch counts with its shortest time. The last line with --json is one object: `ratio` maps each batch size
to the prior's tokens a second over the transformer's. --processor-time counts the processor's seconds, which
says more on a machine that others use (with --threads 1).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from cola_cli.families import AUTOREGRESSIVE, CHAIN
from cola_cli.machine import threads
from cola_cli.models.config import PriorConfig, TransformerConfig, matched_sizes
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.models.transformer import Transformer
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.requests import Request
from cola_cli.sampling.sampler import Sampler
from cola_cli.settings.sample import SamplingOptions
from tests.bench.sample import PRIOR, VAE

PROMPT = 64


def prior_config(prediction: str, passes: int, guidance: float) -> PriorConfig:
    """The prior of tests/bench/sample.py in another parameterisation, as `cola distill` would make it."""
    changes: dict[str, Any] = {"prediction": prediction}
    if prediction == "tokens":
        changes["vocab_size"] = VAE.vocab_size
        if guidance == 1.0:
            changes |= {"passes": passes, "chain": CHAIN * PRIOR.dim}
    return PriorConfig.model_validate(PRIOR.model_dump() | changes)


def samplers(config: PriorConfig, batch: int, arguments: argparse.Namespace) -> dict[str, Sampler]:
    """Both, with random weights, none of them zero."""
    torch.manual_seed(0)
    options = SamplingOptions(
        max_new_tokens=arguments.new, steps=arguments.passes, guidance=arguments.guidance
    )
    matched = TransformerConfig(vocab_size=VAE.vocab_size, causal=True, **matched_sizes(config))
    vae, prior, transformer = TextVAE(VAE), Prior(config), Transformer(matched)
    with torch.no_grad():
        for parameter in (*vae.parameters(), *prior.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.05)
        if config.prediction == "tokens":
            prior.codes.normal_()
    assert AUTOREGRESSIVE.token_model is not None
    return {
        "prior": Engine(vae.eval(), prior.eval(), options, batch),
        "autoregressive": AUTOREGRESSIVE.token_model.sampler(transformer.eval(), options, batch),
    }


def stretches(sampler: Sampler, prompts: list[list[int]], new: int) -> Iterator[int]:
    """Continue the prompts, yielding the new tokens of each whenever all have 16 more."""
    lengths = [0] * len(prompts)
    wanted = PRIOR.block_size
    for request, generation in sampler.run(Request(i, row) for i, row in enumerate(prompts)):
        lengths[request.item] = len(generation.ids)
        if min(lengths) >= wanted:
            yield wanted
            wanted += PRIOR.block_size
    assert lengths == [new] * len(prompts)


def compare(
    both: dict[str, Sampler], batch: int, new: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of each sampler for the whole batch."""
    source = torch.Generator().manual_seed(batch)
    prompts = torch.randint(0, VAE.vocab_size, (batch, PROMPT), generator=source).tolist()
    best = {name: [math.inf] * (new // PRIOR.block_size) for name in both}
    for _ in range(1 + rounds):  # the first one warms
        running = {name: stretches(sampler, prompts, new) for name, sampler in both.items()}
        for place in range(new // PRIOR.block_size):
            for name, stretch in running.items():
                started = clock()
                next(stretch)
                best[name][place] = min(best[name][place], clock() - started)
        for stretch in running.values():
            assert next(stretch, None) is None
    return {name: sum(seconds) for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=4, help="of the prior over a block")
    parser.add_argument("--prediction", default="velocity", help="velocity, latent or tokens")
    parser.add_argument("--guidance", type=float, default=1.0, help="1: baked in, or none")
    parser.add_argument("--new", type=int, default=128, help="tokens, a multiple of 16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    print(threads.prepare_torch(arguments.threads))
    clock = time.process_time if arguments.processor_time else time.perf_counter
    config = prior_config(arguments.prediction, arguments.passes, arguments.guidance)
    ratio: dict[str, float] = {}
    for batch in arguments.batches:
        both = samplers(config, batch, arguments)
        seconds = compare(both, batch, arguments.new, arguments.rounds, clock)
        speed = {name: batch * arguments.new / time for name, time in seconds.items()}
        ratio[str(batch)] = round(speed["prior"] / speed["autoregressive"], 3)
        print(
            f"batch {batch}: {arguments.passes} passes a block of {PRIOR.block_size}"
            f" {speed['prior']:.0f} tokens/s, autoregressive {speed['autoregressive']:.0f},"
            f" ratio {ratio[str(batch)]:.2f}",
            flush=True,
        )
    if arguments.json:
        print(json.dumps({"ratio": ratio}))


if __name__ == "__main__":
    main()
