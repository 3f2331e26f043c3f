"""Blocks in fixed shapes, as a GPU runs them, against rows without padding."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cola_cli.cost import sampling as cost
from cola_cli.models.config import TransformerConfig
from cola_cli.models.transformer import Transformer
from cola_cli.sampling.autoregressive import AutoregressiveSampler
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.fast import best_denoiser
from cola_cli.sampling.fast.cuda_graph import GraphDenoiser
from cola_cli.sampling.fast.fused_prior import FusedPrior
from cola_cli.sampling.fast.ragged_denoiser import RaggedDenoiser
from cola_cli.sampling.requests import Generation, Request
from cola_cli.settings.sample import SamplingOptions
from tests import golden
from tests.oracles.graphed_ar import GraphedAutoregressive

LENGTHS = (40, 5, 0, 8, 1, 23)  # the longest first, so that the caches stay where they are


def generations(
    fixed: bool, device: str = "cpu", **options: Any
) -> tuple[list[Generation], Engine]:
    model = golden.detail_model()
    vae, prior = (network.to(device) for network in model.networks)
    source = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 500, (n,), generator=source).tolist() for n in LENGTHS]
    chosen = SamplingOptions(**({"max_new_tokens": 11, "steps": 3} | options))
    maker = functools.partial(best_denoiser, fixed_shapes=fixed)
    engine = Engine(vae, prior, chosen, 4, 511, maker)
    found = {}
    for request, generation in engine.run(Request(i, prompt) for i, prompt in enumerate(prompts)):
        found[request.item] = generation
    return [found[i] for i in range(len(prompts))], engine


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance": 1.0},
        {"guidance_interval": (0.2, 0.8)},
        {"solver": "heun"},
        {"eta": 0.7},
        {"solver": "midpoint", "grid": (1.0, 0.6, 0.1, 0.0)},
        {"first_block": "left-pad"},
        {"first_block": "right-pad"},
        {"compat": "released"},
        {"temperature": 0.8, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_fixed_shapes_give_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(cost, "LENGTH_STEP", 16)
    expected, _ = generations(False, **options)
    found, engine = generations(True, **options)
    assert isinstance(engine.denoiser, GraphDenoiser)
    rows, keys, pinned = (set(part) for part in zip(*engine.denoiser.buckets, strict=True))
    assert rows >= {4, 2}
    assert len(keys) > 1
    assert pinned == {True, False} or options.get("first_block")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.latents, other.latents, atol=2e-4, rtol=1e-3)
        assert one.ids == other.ids


def test_compiled_parts_serve_all_layers_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU compiles, here by a compiler that only traces: no part of it breaks, no layer is apart."""
    expected, _ = generations(False)
    traced = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        traced.append(graph)
        return graph.forward

    made = FusedPrior.__init__

    def compiled(fused: FusedPrior, *arguments: Any) -> None:
        made(fused, *arguments)
        fused.compile(backend=backend)

    monkeypatch.setattr(FusedPrior, "__init__", compiled)
    torch._dynamo.reset()
    found, _ = generations(True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.latents, other.latents, atol=2e-4, rtol=1e-3)
    # two parts; blocks alone at one t, or with clean positions among them; two sizes, then any
    assert 0 < len(traced) <= 8


def test_partial_repaint_is_left_to_the_other_way() -> None:
    engine = generations(True, first_block="partial-repaint")[1]
    assert isinstance(engine.denoiser, RaggedDenoiser)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"guidance": 1.0}, {"solver": "heun"}], ids=str)
def test_graphs_on_a_gpu_give_the_tokens_of_a_cpu(options: dict[str, Any]) -> None:
    expected, _ = generations(False, **options)
    found, engine = generations(True, device="cuda", **options)
    assert isinstance(engine.denoiser, GraphDenoiser)
    assert engine.denoiser.buckets
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.latents.cpu(), other.latents, atol=1e-3, rtol=1e-2)
        assert one.ids == other.ids


def test_buckets() -> None:
    assert [cost.row_bucket(n) for n in (1, 2, 3, 4, 5, 64)] == [1, 2, 4, 4, 8, 64]
    assert [cost.length_bucket(n) for n in (1, 128, 129)] == [128, 128, 256]


def test_the_autoregressive_sampler_of_the_gpu_benchmark_gives_the_tokens_of_ours() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=50, causal=True, layers=2, dim=16, ffn_dim=24, heads=2, head_dim=8
    )
    network = Transformer(config).requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(std=0.5)
    sampler = AutoregressiveSampler(network, SamplingOptions(max_new_tokens=9), 1)
    prompt = [3, 1, 4, 1, 5]
    *_, (_, expected) = sampler.run([Request(0, prompt)])
    graphed = GraphedAutoregressive(network, 14)
    assert graphed.generate(prompt, 9) == expected.ids
    assert graphed.generate(prompt, 9) == expected.ids  # nothing of the last call is left


def test_without_a_gpu_the_benchmark_says_so() -> None:
    script = Path(__file__).parents[1] / "bench" / "sample_gpu.py"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 2
    assert result.stderr == "There is no GPU here, and this benchmark needs one.\n"
