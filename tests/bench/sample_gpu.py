"""Time generation at the paper's size on a GPU: random weights in bf16, batch 1.

    python tests/bench/sample_gpu.py [--json] [--steps 10 16] [--new 512] [--rounds 3]

`bandwidth_share` is the bytes of the prior's weights that a pass reads, times passes, over the seconds and
the measured bandwidth of a copy. `against_autoregressive` is tokens/s over those of a transformer of matched
size (27 layers, 2048 wide) with a static cache and CUDA graphs. Samplers take turns; each counts with its
shortest time. Without a GPU it says so and ends with code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import nn

from cola_cli.models.config import PriorConfig, TextVAEConfig, TransformerConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.models.transformer import Transformer
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.requests import Request
from cola_cli.settings.sample import SamplingOptions
from tests.oracles.graphed_ar import GraphedAutoregressive

VOCABULARY, PROMPT = 100_278, 64
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def placed(network: NetworkT) -> NetworkT:
    """Random weights in bf16, none of them zero; rotary frequencies stay float32."""
    network.requires_grad_(False).eval()
    for parameter in network.parameters():
        parameter.data = (torch.randn_like(parameter) * 0.02).bfloat16()
    return network


def copy_bandwidth() -> float:
    """Bytes read and written a second by a large copy, the best of some."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * source.numel() / (time.perf_counter() - started))
    return best


def pass_bytes(prior: Prior) -> int:
    """Bytes of the weights that a pass reads: all but the modulations', which a table holds."""
    skipped = ("modulation", "timestep")
    return sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in prior.named_parameters()
        if not any(part in name for part in skipped)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 16])
    parser.add_argument("--new", type=int, default=512, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here, and this benchmark needs one.", file=sys.stderr)
        raise SystemExit(2)
    with torch.device("cuda"):
        vae = placed(TextVAE(TextVAEConfig(vocab_size=VOCABULARY)))
        prior = placed(Prior(PriorConfig()))
        baseline = placed(Transformer(TransformerConfig(vocab_size=VOCABULARY, causal=True)))
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}; copies at {bandwidth / 1e12:.2f} TB/s")
    prompt = torch.randint(0, VOCABULARY, (PROMPT,)).tolist()
    autoregressive = GraphedAutoregressive(baseline, PROMPT + arguments.new)

    def cola_seconds(engine: Engine) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in engine.run([Request(0, prompt)]):
            pass
        return time.perf_counter() - started

    def autoregressive_seconds() -> float:
        """Of the new tokens; the prompt, which goes token by token here, is not charged."""
        autoregressive.generate(prompt, 1)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(arguments.new):
            autoregressive.step()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    found: dict[str, dict[str, float]] = {}
    for steps in arguments.steps:
        engine = Engine(vae, prior, SamplingOptions(max_new_tokens=arguments.new, steps=steps), 1)
        cola_seconds(engine)  # compiles and captures
        pairs = [(cola_seconds(engine), autoregressive_seconds()) for _ in range(arguments.rounds)]
        cola, ar = (min(seconds) for seconds in zip(*pairs, strict=True))
        passes = steps * arguments.new / prior.config.block_size
        found[str(steps)] = {
            "tokens_per_second": arguments.new / cola,
            "autoregressive_tokens_per_second": arguments.new / ar,
            "bandwidth_share": pass_bytes(prior) * passes / cola / bandwidth,
            "against_autoregressive": ar / cola,
        }
        print(
            f"{steps} steps: {arguments.new / cola:.0f} tokens/s,"
            f" {100 * found[str(steps)]['bandwidth_share']:.0f} % of the bandwidth limit;"
            f" autoregressive {arguments.new / ar:.0f} tokens/s, ratio {ar / cola:.2f}",
            flush=True,
        )
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
