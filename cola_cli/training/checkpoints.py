"""Checkpoints: a directory a step, safetensors and JSON only, committed by a record written last.

checkpoints/step-00000200/
  model-00000.safetensors  optimizer-00000.safetensors  [average-00000.safetensors]  state.json
  written-00000.json       name -> size and SHA-256 of the files of process 0
  COMMITTED.json           the same of every file above; without it there is no checkpoint

With sharded parameters every process writes the rows it holds (model-00001 ...), and nobody the whole; the
header of a file says where the rows belong, so any number of processes reads back what it needs.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cola_cli.artifacts.files import atomic_file, make_directory, sha256_file, write_atomic
from cola_cli.artifacts.reading import read_json
from cola_cli.errors import DamagedArtifact

COMMITTED = "COMMITTED.json"
RECORD_LIMIT = 64 << 20  # bytes
STARTS = (
    "starts"  # in the header of a file: JSON, name -> number of its first row in the whole tensor
)
# What a header or record of another shape makes of the code below.
_FOREIGN = (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
_STEP = re.compile(r"step-(\d{8,})$")


@dataclass(frozen=True)
class Group:
    """Tensors of one file: whole ones, and rows of sharded ones with the number of the first."""

    tensors: dict[str, Tensor]
    starts: dict[str, int]


class Checkpoint:
    """A committed checkpoint, opened for reading; a file is checked against its digest on first use."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        self._checked: set[str] = set()
        try:
            self._files: dict[str, dict[str, Any]] = read_json(path / COMMITTED, RECORD_LIMIT)
            for name, record in self._files.items():
                if Path(name).name != name or {*record} != {"bytes", "sha256"}:
                    raise ValueError(f"{name} is no record of a file in it")
            self.state: dict[str, Any] = read_json(self._file("state.json"), RECORD_LIMIT)
            if not isinstance(self.state, dict):
                raise ValueError("state.json holds no state")
        except (OSError, ValueError, *_FOREIGN) as error:
            raise _damaged(path / COMMITTED) from error
        self._places: dict[str, dict[str, list[tuple[int, int, str]]]] = {}

    def names(self, group: str) -> list[str]:
        """The names of the tensors of a group."""
        return list(self._index(group))

    def read(self, group: str, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` - 1 of a tensor, or all of it, on the CPU.

        Raises DamagedArtifact when a file that holds them is not what was written.
        """
        pieces = sorted(self._index(group).get(name, []))
        if stop is None:
            if len(pieces) == 1:
                with self._open(pieces[0][2]) as file:
                    whole: Tensor = file.get_tensor(name)
                return whole
            stop = sum(rows for _, rows, _ in pieces)
        parts, at = [], start
        for first, rows, path in pieces:
            if first <= at < min(stop, first + rows):
                end = min(stop, first + rows)
                with self._open(path) as file:
                    parts.append(file.get_slice(name)[at - first : end - first])
                at = end
        if at != stop or not parts:
            raise _damaged(self.path / COMMITTED)
        return torch.cat(parts)

    def _index(self, group: str) -> dict[str, list[tuple[int, int, str]]]:
        """Where the rows of each tensor lie: first row, rows, file."""
        if group not in self._places:
            places: dict[str, list[tuple[int, int, str]]] = {}
            pattern = re.compile(re.escape(group) + r"-\d{5,}\.safetensors$")
            for path in sorted(filter(pattern.match, self._files)):
                with self._open(path, checked=False) as file:
                    starts = json.loads((file.metadata() or {}).get(STARTS, "{}"))
                    for name in file.keys():  # noqa: SIM118 - it is no dictionary
                        rows = file.get_slice(name).get_shape()[:1]
                        place = (int(starts.get(name, 0)), rows[0] if rows else 1, path)
                        places.setdefault(name, []).append(place)
            self._places[group] = places
        return self._places[group]

    @contextlib.contextmanager
    def _open(self, name: str, checked: bool = True) -> Iterator[Any]:
        path = self._file(name) if checked else self.path / name
        try:
            with safe_open(path, "pt") as file:
                yield file
        except (SafetensorError, OSError, ValueError, *_FOREIGN) as error:
            raise _damaged(path) from error

    def _file(self, name: str) -> Path:
        path = self.path / name
        record = self._files[name]
        if name not in self._checked:
            if path.is_symlink() or not path.is_file() or path.stat().st_size != record["bytes"]:
                raise _damaged(path)
            if sha256_file(path) != record["sha256"]:
                raise _damaged(path)
            self._checked.add(name)
        return path


def write(
    directory: Path, step: int, groups: dict[str, Group], state: dict[str, Any] | None, rank: int
) -> None:
    """Write the files of one process into the checkpoint of `step`; it counts once it is committed."""
    path = directory / f"step-{step:08d}"
    names = []
    for name, group in groups.items():
        names.append(f"{name}-{rank:05d}.safetensors")
        with atomic_file(path / names[-1]) as temporary:
            tensors = {key: tensor.contiguous() for key, tensor in group.tensors.items()}
            save_file(tensors, temporary, {STARTS: json.dumps(group.starts)})
    if state is not None:
        names.append("state.json")
        write_atomic(path / names[-1], json.dumps(state, indent=2).encode())
    record = {
        name: {"bytes": (path / name).stat().st_size, "sha256": sha256_file(path / name)}
        for name in names
    }
    write_atomic(path / f"written-{rank:05d}.json", json.dumps(record, indent=2).encode())


def commit(directory: Path, step: int) -> None:
    """Make the checkpoint of `step` count; every process must have written its files."""
    path = directory / f"step-{step:08d}"
    record: dict[str, Any] = {}
    for file in sorted(path.glob("written-*.json")):
        record |= json.loads(file.read_bytes())
    write_atomic(path / COMMITTED, json.dumps(record, indent=2).encode())


class Saver:
    """Writes checkpoints in a thread while training goes on; one at a time, in order."""

    def __init__(self, directory: Path, keep_last: int, keep_every: int, rank: int) -> None:
        self._directory = directory
        self._keep = keep_last, keep_every
        self._rank = rank
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._busy: Future[None] | None = None
        self._uncommitted: int | None = None

    def begin(self, step: int) -> None:
        """Make room for the checkpoint of `step`; one process, before any writes."""
        remove(self._directory / f"step-{step:08d}")  # of a run that was killed before it committed
        make_directory(self._directory)

    def write(self, step: int, groups: dict[str, Group], state: dict[str, Any] | None) -> None:
        """Begin to write; `groups` and `state` must not change any more."""
        self._uncommitted = step
        self._busy = self._thread.submit(write, self._directory, step, groups, state, self._rank)

    @property
    def writing(self) -> bool:
        """Whether a file is still being written; raises what went wrong in the thread."""
        if self._busy is None or not self._busy.done():
            return self._busy is not None
        self.wait()
        return False

    def commit(self) -> None:
        """Begin to commit what was written, if it is not yet; when all processes have written."""
        if self._uncommitted is not None:
            self._busy = self._thread.submit(self._commit, self._uncommitted)
            self._uncommitted = None

    def wait(self) -> None:
        """Return once nothing is being written; raises what went wrong in the thread."""
        if self._busy is not None:
            self._busy.result()
            self._busy = None

    def _commit(self, step: int) -> None:
        commit(self._directory, step)
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


def remove_all(directory: Path) -> None:
    """Remove every checkpoint, and the directory."""
    for path in directory.glob("step-*"):
        remove(path)
    shutil.rmtree(directory, ignore_errors=True)


def _damaged(path: Path) -> DamagedArtifact:
    return DamagedArtifact(
        f"the checkpoint file {path} is damaged.",
        "Remove that checkpoint's directory to go on from the one before it.",
    )


def collect(tensors: dict[str, Tensor], leads: bool) -> Group:
    """Copies on the CPU of what this process writes: its rows of sharded tensors; the first, whole ones."""
    copies: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    for name, tensor in tensors.items():
        own, start = own_rows(tensor)
        if start is None:
            if not leads:
                continue
        elif len(own):
            starts[name] = start
        else:
            continue
        copies[name] = own.detach().to("cpu", copy=True)
    return Group(copies, starts)


def own_rows(tensor: Any) -> tuple[Tensor, int | None]:
    """The rows of a sharded tensor that this process holds and the number of the first; None: it is whole.

    `fully_shard` cuts the first dimension into equal runs of rows, the last ones shorter.
    """
    if not hasattr(tensor, "to_local"):
        return tensor, None
    mesh = tensor.device_mesh
    share = -(-tensor.shape[0] // mesh.size())
    return tensor.to_local(), min(mesh.get_local_rank() * share, tensor.shape[0])


def fill(tensor: Tensor, checkpoint: Checkpoint, group: str, name: str) -> None:
    """Give a tensor, or the rows of it that this process holds, the values of a checkpoint."""
    own, start = own_rows(tensor)
    with torch.no_grad():
        if start is None:
            own.copy_(checkpoint.read(group, name))
        elif len(own):
            own.copy_(checkpoint.read(group, name, start, start + len(own)))


def whole(tensors: dict[str, Tensor], leads: bool) -> dict[str, Tensor]:
    """On the first process, copies on the CPU, sharded tensors put together (every process must call)."""
    copies = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if leads:
            copies[name] = full.detach().to("cpu", copy=True)
    return copies


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
    optimizers: list[torch.optim.Optimizer], names: dict[Tensor, str], checkpoint: Checkpoint
) -> None:
    """Put back what `optimizer_tensors` gave."""
    keys: dict[str, list[str]] = {}
    for flat in checkpoint.names("optimizer"):
        name, _, key = flat.rpartition(":")
        keys.setdefault(name, []).append(key)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[parameter]
                for key in keys.get(name, ()):
                    if key == "step":  # AdamW's count of updates, where the parameter is
                        step = checkpoint.read("optimizer", f"{name}:{key}")
                        optimizer.state[parameter][key] = step.to(parameter.device)
                        continue
                    moment = torch.zeros_like(parameter)
                    fill(moment, checkpoint, "optimizer", f"{name}:{key}")
                    optimizer.state[parameter][key] = moment
