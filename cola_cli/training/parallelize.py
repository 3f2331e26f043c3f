"""Data parallelism, compilation and recomputation, applied around an objective."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cola_cli.machine.processes import World
from cola_cli.settings.training import Train
from cola_cli.training.objectives.objective import Batch, Objective

# arrays of a batch whose length differs from step to step
DYNAMIC = (
    "clean_places", "masked_places", "masked_weight", "target_places", "targets", "target_weight"
)  # fmt: skip


def blocks(objective: Objective) -> list[nn.Module]:
    """The transformer blocks of an objective's networks."""
    return [
        block
        for module in objective.modules()
        if type(module) is nn.ModuleList  # that of adapters is a kind of it
        for block in module
    ]


def recompute_blocks(objective: Objective) -> None:
    """Keep only the inputs of each block for the backward pass and compute the rest again."""
    for block in blocks(objective):
        # on the instance, so that the names of the parameters stay as they are
        forward: Any = functools.partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = forward


def wrap(objective: Objective, train: Train, world: World) -> nn.Module:
    """The module that a training step calls."""
    if world.size > 1 and train.parallel == "fsdp":
        from torch.distributed import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # nothing here writes into what a part returns
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        # Each part moves to the device when it is sharded, so no device ever holds the whole.
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in blocks(objective):
            # Modulations are computed before the blocks run, for all layers at once.
            if isinstance(modulation := getattr(block, "modulation", None), nn.Module):
                fully_shard(modulation, mesh=mesh)
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
    else:
        objective.to(world.device)
    module: Any = torch.compile(objective) if train.compile else objective
    if world.size > 1 and train.parallel == "ddp":
        module = nn.parallel.DistributedDataParallel(
            module,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            find_unused_parameters=True,
        )
    return module


def reshard(objective: Objective) -> None:
    """Free the weights that FSDP gathered: the next forward pass gathers them again from the shards.

    A forward pass keeps those of the outermost group for its backward pass. Without one they would stay,
    and later passes would not see what is written into the shards.
    """
    for module in objective.modules():
        if free := getattr(module, "reshard", None):  # an FSDPModule; importing that takes a second
            free()


def mark_dynamic(batch: Batch) -> None:
    """Tell the compiler which tensors change in length from step to step."""
    from torch._dynamo import maybe_mark_dynamic

    for name in DYNAMIC:
        if name in batch:
            maybe_mark_dynamic(batch[name], 0)
