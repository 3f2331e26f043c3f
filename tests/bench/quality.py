"""What each way of saving passes costs in quality: steps, solvers, grids, guidance intervals.

    python tests/bench/quality.py MODEL [--prompts data/prompts.jsonl] [--words TEXT_FILE] [--json]

Every row continues the same prompts from the same noise. `passes` are passes of the prior a token, and
`velocities` counts conditional and unconditional ones apart. `agreement` is the share of the first block's
new tokens that 64 Euler steps with guidance throughout give too, `words` the share of generated words that
occur in the text file, `repeated` the share of 4-grams of tokens that occurred earlier in their continuation.
Tokens are counted a second of processor time on a CPU (take one thread), of the clock on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli.machine import threads

THREADS = threads.prepare_torch()

from cola_cli.api import Cola, load
from cola_cli.evaluation.text_metrics import text_metrics
from cola_cli.flow.guidance import is_guided
from cola_cli.flow.solvers import chosen_grid, evaluation_times
from cola_cli.sampling.prompts import read_prompts
from cola_cli.sampling.requests import Generation

REFERENCE_STEPS = 64
WORD = re.compile(r"[A-Za-z']+")


def bent_grid(steps: int, power: float) -> list[float]:
    """Times (1 - i / steps)^power: above 1 they are dense near t = 0, below 1 near t = 1."""
    return [(1 - i / steps) ** power for i in range(steps)] + [0.0]


def cosine_grid(steps: int) -> list[float]:
    """Times dense at both ends."""
    return [(1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps)] + [0.0]


def ways(guidance: float) -> dict[str, dict[str, Any]]:
    """Names and options of what is compared."""
    found: dict[str, dict[str, Any]] = {
        f"Euler, {steps} steps": {"steps": steps} for steps in (1, 2, 4, 8, 10, 16, 32)
    }
    for solver in ("heun", "midpoint"):
        for steps in (2, 4, 8):
            found[f"{solver}, {steps} steps"] = {"steps": steps, "solver": solver, "eta": 0.0}
    found["Euler, 8 steps, t = (1 - i/8)^0.5"] = {"grid": bent_grid(8, 0.5)}
    found["Euler, 8 steps, t = (1 - i/8)^2"] = {"grid": bent_grid(8, 2.0)}
    found["Euler, 8 steps, cosine grid"] = {"grid": cosine_grid(8)}
    for low, high in ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.25, 1.0)):
        found[f"Euler, 16 steps, guidance in [{low}, {high}]"] = {
            "steps": 16,
            "guidance_interval": (low, high),
        }
    for eta in (0.0, 0.5, 1.0):
        found[f"Euler, 16 steps, eta {eta}"] = {"steps": 16, "eta": eta}
    found["Euler, 16 steps, no guidance"] = {"steps": 16, "guidance": 1.0}
    return {name: {"guidance": guidance} | options for name, options in found.items()}


def passes(options: dict[str, Any], tokens: int) -> tuple[float, float]:
    """Passes and velocities a token; an unconditional velocity is asked for where guidance acts."""
    grid = chosen_grid(options.get("steps", 0), options.get("grid"))
    times = evaluation_times(grid, options.get("solver", "euler"))
    interval = options.get("guidance_interval", (0.0, 1.0))
    velocities = sum(1 + is_guided(t, options["guidance"], interval) for t in times)
    return len(times) / tokens, velocities / tokens


@dataclass(frozen=True)
class Task:
    """What is continued, and what it is judged by."""

    model: Cola
    prompts: list[list[int]]
    new: int
    words: set[str]

    def generate(self, options: dict[str, Any]) -> tuple[list[Generation], float]:
        """Continuations, and the seconds they took."""
        clock = time.process_time if self.model.device.type == "cpu" else time.perf_counter
        started = clock()
        found = self.model.generate_ids(self.prompts, max_new_tokens=self.new, seed=0, **options)
        return found, clock() - started

    def metrics(self, found: list[Generation], reference: list[Generation]) -> dict[str, float]:
        """Agreement with the reference, share of known words, repetition."""
        block = self.model.prior.config.block_size * self.model.vae.config.patch_size
        same, count = 0, 0
        for prompt, one, other in zip(self.prompts, found, reference, strict=True):
            first = min(block - len(prompt) % block, self.new)
            same += sum(a == b for a, b in zip(one.ids[:first], other.ids[:first], strict=True))
            count += first
        texts = [self.model.require_tokenizer().decode(one.ids) for one in found]
        # the last word may be cut
        words = [word.lower() for text in texts for word in WORD.findall(text)[:-1]]
        repeated = text_metrics([one.ids for one in found])["repeated_4"] or 0.0
        known = sum(word in self.words for word in words) / max(1, len(words))
        return {"agreement": same / count, "words": known, "repeated": repeated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts.jsonl"))
    parser.add_argument("--count", type=int, default=32, help="prompts")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--guidance", type=float, default=7.0)
    parser.add_argument("--words", type=Path, help="text whose words count as words")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = load(arguments.model, arguments.device)
    tokenizer = model.require_tokenizer()
    texts = [prompt.text for prompt in read_prompts(arguments.prompts)]
    prompts = [tokenizer.encode(texts[i % len(texts)]) for i in range(arguments.count)]
    text = arguments.words.read_text(errors="replace") if arguments.words else " ".join(texts)
    words = {word.lower() for word in WORD.findall(text)}
    task = Task(model, prompts, arguments.new, words)
    block = model.prior.config.block_size * model.vae.config.patch_size
    reference, _ = task.generate({"guidance": arguments.guidance, "steps": REFERENCE_STEPS})
    rows: dict[str, dict[str, float]] = {}
    print(f"{THREADS}; {len(prompts)} prompts, {arguments.new} new tokens each\n")
    print("| way | passes | velocities | tokens/s | agreement | words | repeated |")
    print("|---|---|---|---|---|---|---|")
    everything = ways(arguments.guidance)
    everything["Euler, 64 steps"] = {"guidance": arguments.guidance, "steps": REFERENCE_STEPS}
    for name, options in everything.items():
        found, seconds = task.generate(options)
        tokens = sum(len(one.ids) for one in found)
        calls, velocities = passes(options, block)
        row = {
            "passes": calls,
            "velocities": velocities,
            "tokens_per_second": tokens / seconds,
        } | task.metrics(found, reference)
        rows[name] = row
        print(
            f"| {name} | {calls:.2f} | {velocities:.2f} | {row['tokens_per_second']:.0f} |"
            f" {row['agreement']:.3f} | {row['words']:.3f} | {row['repeated']:.3f} |",
            flush=True,
        )
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
