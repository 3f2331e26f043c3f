"""One process or many under torchrun: ranks, wrapping of the model, reductions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from cola_cli.errors import UsageError


@dataclass(frozen=True)
class World:
    """The processes that train together. Rank 0 writes.

    files: the group in which they agree on checkpoints while they train on; None: there is one process.
    """

    rank: int
    size: int
    device: torch.device
    files: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over all processes."""
        if self.size == 1:
            return values
        names = sorted(values)
        tensor = torch.tensor([values[n] for n in names], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(names, tensor.tolist(), strict=True))

    def total_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [int(number) for number in tensor.tolist()]

    def wait(self) -> None:
        """Return once every process is here."""
        if self.size > 1:
            dist.barrier()


ALONE = World(0, 1, torch.device("cpu"))


def pick_device(name: str) -> torch.device:
    """The device of a --device flag; `auto` is a GPU if there is one. Raises UsageError if it is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"--device {name}: there is no such device.", "Try cpu or cuda."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this machine has no usable GPU.", "Try --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(
            f"--device {name}: this machine has {count} GPUs, numbered from 0.",
            "Try --device cuda.",
        )
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if device.type == "cuda":
            raise
        raise UsageError(
            f"--device {name}: this machine, or this build of PyTorch, has no such device.",
            "Try cpu or cuda.",
        ) from error
    return device


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world of this process: alone, or one of those that torchrun (or srun) started."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size, chosen, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()
