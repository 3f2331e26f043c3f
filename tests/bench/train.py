"""Time one training step of the prior: cola's against a plain one with the same weights and draws.

    python tests/bench/train.py [--json] [--rounds 3]
    python tests/bench/train.py --device cuda --compile --shape small      # or paper-2b; bf16

The two alternate in one run. Loss and gradients are compared first. The last line with --json is one object;
`ratio` is plain SDPA over cola, `flops_use` the useful operations over the machine's measured matrix rate,
`joint_over_parts` the time of a joint step over that of a frozen and a stage-1 step together,
`reader_share` the share of training that waits for data.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli.machine import threads

threads.prepare_torch()

import numpy as np
import torch
from torch import Tensor

from cola_cli.corpus.sequences import Rows
from cola_cli.cost import Data
from cola_cli.cost.training import prior_cost
from cola_cli.machine.speed import matrix_rate
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.vae import VAESettings
from cola_cli.training.objectives.flow_matching import FlowMatching, JointTraining
from cola_cli.training.objectives.objective import Batch, Objective
from cola_cli.training.objectives.text_vae import TextVAEObjective
from cola_cli.training.reader import make_step, scaled, to_device
from tests.bench.reader import encoder_size, read_and_encode
from tests.oracles import plain_train

VAE = TextVAEConfig(vocab_size=1)  # of nothing but the width of latents
# (sequences, latents, prior)
SHAPES = {
    "cpu": (8, 256, PriorConfig(dim=256, heads=4, head_dim=64, rope_dim=48, layers=6)),
    # few enough that the plain one's mask fits
    "small": (16, 512, PriorConfig(dim=384, heads=6, head_dim=64, rope_dim=48, layers=8)),
    "paper-2b": (4, 512, PriorConfig(layers=4)),
}


def prepare(rows: int, length: int, config: PriorConfig, device: str) -> tuple[FlowMatching, Batch]:
    """An objective with random weights (none zero) and one batch of draws."""
    torch.manual_seed(0)
    prior = Prior(config)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=0.05)
    random = np.random.default_rng(0)
    d = config.latent_dim
    data = Rows(
        np.arange(rows),
        np.zeros((rows, length), np.int64),
        np.full(rows, length),
        random.standard_normal((rows, length, d)).astype(np.float16),
        np.full((rows, length, d), -4.5, np.float16),
    )
    objective = FlowMatching(prior, PriorSettings(), np.ones(d), length, VAE).to(device)
    step = make_step(objective, data, list(range(rows)), 0, 0, rows)
    return objective, to_device(scaled(step.batches[0], step.counts, 1), torch.device(device))


def joint_cost(device: str, rounds: int) -> float:
    """Seconds of a joint step over those of a frozen step and a stage-1 step of the same rows."""
    rows, length, config = 8, 128, PriorConfig(dim=192, heads=4, head_dim=48, rope_dim=36, layers=4)
    shape = TextVAEConfig(
        vocab_size=4096, encoder_layers=2, decoder_layers=2, dim=128, ffn_dim=512, heads=4
    )
    vae = TextVAE(shape)
    random = np.random.default_rng(0)
    latents = random.standard_normal((2, rows, length, config.latent_dim)).astype(np.float16)
    data = Rows(
        np.arange(rows),
        random.integers(0, 4096, (rows, length)),
        np.full(rows, length),
        latents[0],
        np.full_like(latents[1], -4.5),
    )
    prior, settings = Prior(config), PriorSettings()
    variance = np.ones(config.latent_dim)
    objectives: tuple[Objective, ...] = (
        JointTraining(prior, vae, settings, variance, length),
        FlowMatching(prior, settings, variance, length, vae.config),
        TextVAEObjective(vae, VAESettings(), length),
    )
    best = [float("inf")] * 3
    batches = []
    for objective in objectives:
        objective.to(device)
        made = make_step(objective, data, list(range(rows)), 0, 0, rows)
        batches.append(to_device(scaled(made.batches[0], made.counts, 1), torch.device(device)))
    for _ in range(rounds):
        for place, objective in enumerate(objectives):

            def run(objective: Objective = objective, batch: Batch = batches[place]) -> float:
                objective.zero_grad(set_to_none=True)
                loss = objective(batch)["loss"]
                loss.backward()
                return float(loss.detach())

            best[place] = min(best[place], timed(run, device))
    return best[0] / (best[1] + best[2])


def plain(objective: FlowMatching, batch: Batch, explicit_softmax: bool) -> Tensor:
    """The loss of the plain implementation on the same draws."""
    z0 = batch["mean"].float() + (0.5 * batch["logvar"].float()).exp() * batch["noise"]
    weights = dict(objective.prior.named_parameters())
    return plain_train.loss(
        weights,
        objective.prior.config,
        z0,
        batch["z1"],
        batch["t"],
        batch["clean"],
        batch["flow_weight"],
        explicit_softmax,
    )


def timed(run: Callable[[], float], device: str) -> float:
    """Seconds of one call."""
    if device != "cpu":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    """Compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", default="cpu", choices=SHAPES)
    parser.add_argument("--compile", action="store_true")
    chosen = parser.parse_args()
    rows, length, config = SHAPES[chosen.shape]
    torch.set_default_device(chosen.device)
    bf16 = chosen.device != "cpu"
    objective, batch = prepare(rows, length, config, chosen.device)
    module = torch.compile(objective) if chosen.compile else objective

    def under_autocast(loss: Callable[[], Tensor]) -> Callable[[], float]:
        def run() -> float:
            with torch.autocast(chosen.device, torch.bfloat16, enabled=bf16):
                value = loss()
            objective.zero_grad(set_to_none=True)
            value.backward()
            return float(value.detach())

        return run

    runs = {
        "cola": under_autocast(lambda: module(batch)["loss"]),
        "plain, SDPA": under_autocast(lambda: plain(objective, batch, False)),
        "plain, explicit softmax": under_autocast(lambda: plain(objective, batch, True)),
    }
    losses, gradients = {}, {}
    for name, run in runs.items():
        losses[name] = run()
        gradients[name] = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
    norm = sum(float(g.square().sum()) for g in gradients["plain, SDPA"]) ** 0.5
    pairs = zip(gradients["cola"], gradients["plain, SDPA"], strict=True)
    difference = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5 / norm
    print(f"loss {losses}; relative difference of the gradients {difference:.2e}")
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(chosen.rounds):
        for name, run in runs.items():
            best[name] = min(best[name], timed(run, chosen.device))
    settings = PriorSettings.model_validate({"train": {"batch_size": rows}})
    flops = prior_cost(config, Data(length, 1, VAE), settings).flops
    rate = matrix_rate(chosen.device, bf16, config.dim, min(rows * length, 8192))
    for name, seconds in best.items():
        print(f"{name}: {seconds * 1e3:.1f} ms, {rows * length / seconds:,.0f} tokens/s")
    torch.set_default_device("cpu")
    print(f"cola encode is timed with a VAE of {encoder_size():,} weights, disk included")
    result = {
        "ratio": best["plain, SDPA"] / best["cola"],
        "ratio_explicit_softmax": best["plain, explicit softmax"] / best["cola"],
        "flops_use": flops / best["cola"] / rate,
        "matrix_rate": rate,
        "joint_over_parts": joint_cost(chosen.device, 2 * chosen.rounds),
        **read_and_encode(chosen.device, rows, length, config, 4 + 2 * chosen.rounds),
        "gradient_difference": difference,
        "tokens_per_second": rows * length / best["cola"],
        "threads": torch.get_num_threads(),
    }
    print(
        json.dumps(result) if chosen.json else "\n".join(f"{k}: {v:.4g}" for k, v in result.items())
    )


if __name__ == "__main__":
    main()
