"""One process or many under torchrun: ranks, wrapping of the model, reductions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from cola_cli.errors import ColaError, Interrupted, UsageError
from cola_cli.machine.launcher import launched
from cola_cli.machine.peers import Peers

SETTLING_SECONDS = 0.2


@dataclass(frozen=True)
class World:
    """The processes that train together. Rank 0 writes.

    files: the group in which they agree on checkpoints while they train on; peers: what they know of one
    another. None: there is one process.
    """

    rank: int
    size: int
    device: torch.device
    files: dist.ProcessGroup | None = None
    peers: Peers | None = None

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
        """Return once every process is here. Raises PeerFailed when one has failed."""
        if self.peers is not None:
            self.peers.wait()


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
def joined(device: str, timeout: float) -> Iterator[World]:
    """The world of this process: alone, or one of several that torchrun (or srun) started.

    timeout: minutes for the others to join, and to answer. Raises PeerFailed naming the rank that does not,
    or that failed, and its error; UsageError when a launcher's variables do not fit.
    """
    chosen = pick_device(device)
    launch = launched()
    if launch is None:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(chosen)
    peers = Peers(launch, 60 * timeout)
    wait = timedelta(minutes=timeout)
    try:
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=peers.store,
            rank=launch.rank,
            world_size=launch.size,
            timeout=wait,
        )
        files = dist.new_group(backend="gloo", timeout=wait)
        yield World(launch.rank, launch.size, chosen, files, peers)
    except Exception as error:
        failure = None if isinstance(error, ColaError) else peers.failure(error)
        peers.fail(failure or error)
        if failure is not None:
            raise failure from error
        raise
    except Interrupted as error:
        peers.fail(error)
        raise
    else:
        peers.leave()
    finally:
        peers.stop()  # also after what is not an Exception
        if dist.is_initialized():
            # Gloo's threads need the GIL to drop what they reduced last. Who frees a group holds it and
            # waits for them without end (seen with torch 2.13), so they get it before.
            time.sleep(SETTLING_SECONDS)
            dist.destroy_process_group()
