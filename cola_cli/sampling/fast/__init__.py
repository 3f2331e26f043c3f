"""Faster ways to denoise a block, each with the plain denoiser as its oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cola_cli.models.prior import Prior
    from cola_cli.sampling.cache import KeyValueCache
    from cola_cli.sampling.denoise import Denoiser
    from cola_cli.settings.sample import SamplingOptions


def best_denoiser(
    prior: Prior, cache: KeyValueCache, options: SamplingOptions, fixed_shapes: bool | None = None
) -> Denoiser:
    """The fastest denoiser for this network and its device.

    fixed_shapes: blocks in the shapes of buckets, as CUDA graphs need them; None: where there is a GPU.
    """
    from cola_cli.sampling.denoise import PlainDenoiser
    from cola_cli.sampling.fast.cuda_graph import GraphDenoiser
    from cola_cli.sampling.fast.ragged_denoiser import RaggedDenoiser

    if prior.config.self_conditioning:  # the plain one alone carries estimates from step to step
        return PlainDenoiser(prior, cache, options)
    ragged = RaggedDenoiser(prior, cache, options)
    if fixed_shapes is None:
        fixed_shapes = prior.latent_in.weight.is_cuda
    # partial repaint draws noise inside a block, rows that settle leave it, and groups of a chain are found
    # by their times: no graph can hold that
    loops = options.first_block == "partial-repaint" or options.settle
    if fixed_shapes and not loops and not (prior.config.chain and prior.config.passes > 1):
        return GraphDenoiser(ragged, cache)
    return ragged
