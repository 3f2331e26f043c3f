"""Checkpoints: a directory a step, safetensors and JSON only, committed by a record written last.

checkpoints/step-00000200/
  model.safetensors  optimizer.safetensors  [ema.safetensors]  state.json
  COMMITTED.json     name -> size and SHA-256 of every file above; without it there is no checkpoint
"""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cola_cli.artifacts.files import atomic_file, sha256_file, write_atomic
from cola_cli.errors import DamagedArtifact

COMMITTED = "COMMITTED.json"
_STEP = re.compile(r"step-(\d{8,})$")


class Checkpoint:
    """A committed checkpoint, opened for reading; every file is checked against its digest."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        try:
            self._files: dict[str, dict[str, Any]] = json.loads((path / COMMITTED).read_bytes())
            self.state: dict[str, Any] = json.loads(self._file("state.json").read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path / COMMITTED) from error

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds tensors of that name."""
        return f"{name}.safetensors" in self._files

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, on the CPU."""
        path = self._file(f"{name}.safetensors")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path) from error

    def _file(self, name: str) -> Path:
        path = self.path / name
        record = self._files[name]
        if not path.is_file() or path.stat().st_size != record["bytes"]:
            raise _damaged(path)
        if sha256_file(path) != record["sha256"]:
            raise _damaged(path)
        return path


def save(
    directory: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
) -> None:
    """Write the checkpoint of `step`: one safetensors file for each entry of `tensors`, and `state`."""
    path = directory / f"step-{step:08d}"
    remove(path)  # of an earlier run that was killed before it committed
    for name, group in tensors.items():
        with atomic_file(path / f"{name}.safetensors") as temporary:
            save_file({key: tensor.contiguous() for key, tensor in group.items()}, temporary)
    write_atomic(path / "state.json", json.dumps(state, indent=2).encode())
    record = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        for file in sorted(path.iterdir())
    }
    write_atomic(path / COMMITTED, json.dumps(record, indent=2).encode())


class Saver:
    """Writes checkpoints in a thread while training goes on; one at a time, in order."""

    def __init__(self, directory: Path, keep_last: int, keep_every: int) -> None:
        self._directory = directory
        self._keep = keep_last, keep_every
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Begin to write; `tensors` and `state` must not change any more. Waits for the one before."""
        self.wait()
        self._writing = self._thread.submit(self._write, step, tensors, state)

    def wait(self) -> None:
        """Return once everything is committed; raises what went wrong in the thread."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(
        self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
    ) -> None:
        save(self._directory, step, tensors, state)
        prune(self._directory, *self._keep)


def committed(directory: Path) -> list[tuple[int, Path]]:
    """Step and path of every committed checkpoint, oldest first."""
    found = []
    for path in directory.glob("step-*"):
        match = _STEP.search(path.name)
        if match and (path / COMMITTED).is_file():
            found.append((int(match[1]), path))
    return sorted(found)


def latest(directory: Path) -> Checkpoint | None:
    """The newest committed checkpoint. Raises DamagedArtifact when its bytes are not those written."""
    found = committed(directory)
    return Checkpoint(found[-1][1], found[-1][0]) if found else None


def prune(directory: Path, keep_last: int, keep_every: int) -> None:
    """Remove uncommitted left-overs and all but the last `keep_last` and every `keep_every`-th step."""
    found = committed(directory)
    kept = {path for _, path in found[-keep_last:]}
    if keep_every:
        kept |= {path for step, path in found if step % keep_every == 0}
    for path in directory.glob("step-*"):
        if path not in kept:
            remove(path)


def remove(path: Path) -> None:
    """Remove one checkpoint. Its record goes first, so a kill leaves an uncommitted one."""
    (path / COMMITTED).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _damaged(path: Path) -> DamagedArtifact:
    return DamagedArtifact(
        f"the checkpoint file {path} is damaged.",
        "Remove that checkpoint's directory to go on from the one before it.",
    )


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, sharded tensors put together (every process must call)."""
    copies = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        copies[name] = full.detach().to("cpu", copy=True)
    return copies


def like(tensor: Tensor, other: Any) -> Tensor:
    """`tensor` on the device of `other`, sharded the same way (every process must call)."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # slow to import

    return distribute_tensor(tensor, other.device_mesh, other.placements)


def optimizer_tensors(
    optimizers: list[torch.optim.Optimizer], names: dict[Tensor, str]
) -> dict[str, Tensor]:
    """The state of the optimisers as flat tensors `parameter name : state name`."""
    return {
        f"{names[parameter]}:{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    optimizers: list[torch.optim.Optimizer], names: dict[Tensor, str], saved: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    states: dict[str, dict[str, Tensor]] = {}
    for flat, value in saved.items():
        name, _, key = flat.rpartition(":")
        states.setdefault(name, {})[key] = value
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for key, value in states.get(names[parameter], {}).items():
                    same_shape = value.shape == parameter.shape
                    optimizer.state[parameter][key] = (
                        like(value, parameter) if same_shape else value.to(parameter.device)
                    )
