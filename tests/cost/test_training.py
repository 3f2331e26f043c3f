"""Operations in closed form against PyTorch's own count of what really runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cola_cli.corpus.sequences import Rows
from cola_cli.cost import Data
from cola_cli.cost import sampling as sampling_flops
from cola_cli.cost import training as flops
from cola_cli.flow.solvers import chosen_grid, evaluation_times
from cola_cli.models.config import (
    TIMESTEP_CHANNELS,
    PriorConfig,
    TextVAEConfig,
    TransformerConfig,
)
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.models.transformer import Transformer
from cola_cli.sampling.autoregressive import AutoregressiveSampler
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.masked_diffusion import MaskedDiffusionSampler
from cola_cli.sampling.requests import Request
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.sample import SamplingOptions
from cola_cli.settings.training import Train
from cola_cli.settings.vae import VAESettings
from cola_cli.training.objectives.baselines import MaskedDiffusion, NextToken
from cola_cli.training.objectives.flow_matching import FlowMatching, JointTraining
from cola_cli.training.objectives.objective import Objective
from cola_cli.training.objectives.text_vae import TextVAEObjective
from cola_cli.training.reader import make_step, scaled, to_device

ROWS, LENGTH = 8, 16
VAE = TextVAEConfig(
    vocab_size=300, encoder_layers=2, decoder_layers=2, dim=192, ffn_dim=768, heads=4, latent_dim=8
)
DATA = Data(LENGTH, VAE.vocab_size, VAE)
PRIOR = PriorConfig(
    latent_dim=8, dim=192, heads=4, head_dim=48, rope_dim=24, layers=3, block_size=4
)
SIZES = {"vocab_size": 300, "layers": 3, "dim": 192, "ffn_dim": 512, "heads": 4, "head_dim": 48}


HEAD = PRIOR.model_copy(
    update={"prediction": "tokens", "vocab_size": 300, "evidence": True, "causal_history": True}
)
HEADS = ("head", "silent")  # whose clean copy foretells, or does not
LOSSES = {"head": {"next_token": 0.5}, "silent": {}, "read": {"decoder": 0.5}}
COPIES = 3


def objective(name: str) -> Objective:
    if name in ("autoregressive", "llada"):
        network = Transformer(TransformerConfig(causal=name == "autoregressive", **SIZES))
        return NextToken(network, LENGTH) if network.config.causal else _masked(network)
    if name == "vae":
        return TextVAEObjective(TextVAE(VAE), VAESettings(), LENGTH)
    copies = COPIES if name == "head" else 1
    mode = "frozen" if name in LOSSES else name
    data = {"partly_clean": 0, "noisy_copies": copies}
    loss = LOSSES.get(name, {})
    settings = PriorSettings.model_validate({"mode": mode, "data": data, "loss": loss})
    variance = np.ones(VAE.latent_dim)
    prior = Prior(HEAD if name in HEADS else PRIOR)
    if mode == "frozen":
        decoder = TextVAE(VAE) if settings.loss.decoder else None
        return FlowMatching(prior, settings, variance, LENGTH, VAE, decoder)
    return JointTraining(prior, TextVAE(VAE), settings, variance, LENGTH)


def step_cost(name: str) -> flops.Cost:
    train = Train(batch_size=ROWS)
    if name == "vae":
        return flops.text_vae_cost(VAE, DATA, VAESettings(train=train))
    if name in LOSSES:
        data = {"noisy_copies": COPIES if name == "head" else 1}
        settings = PriorSettings.model_validate(
            {"data": data, "train": train, "loss": LOSSES[name]}
        )
        return flops.prior_cost(HEAD if name in HEADS else PRIOR, DATA, settings)
    if name in ("frozen", "joint"):
        settings = PriorSettings.model_validate({"mode": name, "train": train})
        return flops.prior_cost(PRIOR, DATA, settings)
    config = TransformerConfig(causal=name == "autoregressive", **SIZES)
    return flops.transformer_cost(config, DATA, BaselineSettings(train=train))


def _masked(network: Transformer) -> Objective:
    return MaskedDiffusion(network, LENGTH, 1e-3)


def sequences() -> Rows:
    random = np.random.default_rng(0)
    latents = random.standard_normal((ROWS, LENGTH, VAE.latent_dim)).astype(np.float16)
    tokens = random.integers(0, 300, (ROWS, LENGTH))
    return Rows(np.arange(ROWS), tokens, np.full(ROWS, LENGTH), latents, latents - 3)


@pytest.mark.parametrize(
    "name", ["vae", "frozen", "head", "silent", "read", "joint", "autoregressive", "llada"]
)
def test_a_training_step_takes_the_operations_that_are_counted(name: str) -> None:
    made = objective(name)
    step = make_step(made, sequences(), list(range(ROWS)), 0, 0, ROWS, 0)
    # the math kernel, as the counter does not know the others; it computes what masks forbid as well
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for drawn in step.batches:
            batch = scaled(drawn, step.counts, 1)
            loss: Tensor = made(to_device(batch, torch.device("cpu")))["loss"]
            loss.backward()
    assert counter.get_total_flops() == pytest.approx(step_cost(name).flops, rel=0.02)


def test_noisy_copies_of_half_the_blocks_cost_half_the_noisy_part() -> None:
    def cost(**data: float) -> float:
        return flops.prior_cost(HEAD, DATA, PriorSettings.model_validate({"data": data})).flops

    one = cost()
    assert cost(noisy_share=0.5) - one == pytest.approx((one - cost(noisy_copies=2)) / 2)
    assert cost(noisy_copies=2, noisy_share=0.5) == pytest.approx(one)


def packed_product(x: torch.Size, *others: object, out_shape: torch.Size, **named: object) -> int:
    """oneDNN's linear layer, which PyTorch's counter does not know: (..., in) -> (..., out)."""
    return 2 * x.numel() * out_shape[-1]


def counted(compute: Callable[[], object]) -> float:
    """What PyTorch counts; see above for the kernel."""
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    packed = {torch.ops.mkldnn._linear_pointwise: packed_product} if known else {}
    counter = FlopCounterMode(display=False, custom_mapping=packed)
    with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
        compute()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_pass_of_the_vae_takes_the_operations_that_are_counted(share: float) -> None:
    vae = TextVAE(VAE)
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    encoding = counted(lambda: vae.encode(tokens))
    assert encoding == pytest.approx(flops.text_vae_encoding(VAE, ROWS, LENGTH), rel=0.02)
    heads = int(share * LENGTH)

    def both() -> object:
        hidden = vae.decode_hidden(vae.encode(tokens).mean)
        return vae.token_out(hidden[:, :heads])

    expected = flops.text_vae_forward(VAE, ROWS, LENGTH, heads)
    assert counted(both) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("causal", [True, False])
def test_a_pass_of_a_baseline_takes_the_operations_that_are_counted(causal: bool) -> None:
    network = Transformer(TransformerConfig(causal=causal, **SIZES))
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    pairs = flops.causal_pairs(LENGTH, 1 if causal else LENGTH)
    expected = ROWS * flops.transformer_pass(network.config, LENGTH, pairs, LENGTH)
    assert counted(lambda: network(tokens)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("prompt", [3, 8, 10])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_takes_the_operations_that_are_counted(prompt: int, guidance: float) -> None:
    """Prompts within the first block, of whole blocks, and between; guided passes count twice."""
    options = SamplingOptions(max_new_tokens=9, steps=3, guidance=guidance, solver="heun")
    engine = Engine(TextVAE(VAE), Prior(PRIOR), options)
    requests = [Request(item, [7] * prompt) for item in range(2)]
    found = counted(lambda: list(engine.run(requests)))
    expected = 2 * sampling_flops.cola_sampling(VAE, PRIOR, options, prompt, 9)
    assert found == pytest.approx(expected, rel=0.02)
    # shifts, scales and gates of the grid's times, and twice of t = 0: for prompts and for clean places
    times = len(evaluation_times(chosen_grid(options.steps, options.grid), options.solver)) + 2
    dim = PRIOR.dim
    table = 2 * times * (TIMESTEP_CHANNELS * dim + 4 * dim * dim + PRIOR.layers * 6 * dim * dim)
    again = counted(lambda: Engine(engine.vae, engine.prior, options))
    assert again == pytest.approx(table, rel=0.02)


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_sampling_a_student_takes_the_operations_that_are_counted(passes: int) -> None:
    student = {"prediction": "tokens", "vocab_size": VAE.vocab_size, "passes": passes, "chain": 48}
    config = PriorConfig(**PRIOR.model_dump() | student)
    options = SamplingOptions(max_new_tokens=12, steps=passes, guidance=1.0)
    engine = Engine(TextVAE(VAE), Prior(config), options)
    requests = [Request(item, [7] * 8) for item in range(2)]
    found = counted(lambda: list(engine.run(requests)))
    expected = 2 * sampling_flops.cola_sampling(VAE, config, options, 8, 12)
    assert found == pytest.approx(expected, rel=0.02)


def test_sampling_the_baselines_takes_the_operations_that_are_counted() -> None:
    options = SamplingOptions(max_new_tokens=6, unmask_block=4, unmask_steps=3)
    for causal, sampler in ((True, AutoregressiveSampler), (False, MaskedDiffusionSampler)):
        network = Transformer(TransformerConfig(causal=causal, **SIZES))
        made = sampler(network, options, 2)
        requests = [Request(item, [5] * 7) for item in range(2)]
        found = counted(lambda made=made, requests=requests: list(made.run(requests)))
        count = (
            sampling_flops.autoregressive_sampling
            if causal
            else sampling_flops.masked_diffusion_sampling
        )
        expected = count(network.config, options, 7, 6)
        assert found == pytest.approx(2 * expected, rel=0.02)
