"""Checkpoints: a directory a step, safetensors and JSON only, committed by a record written last.

checkpoints/step-00000200/
  tensors.safetensors      model.NAME, optimizer.NAME:STATE, average.NAME
  state.json
  written-00000.json       name -> size and SHA-256 of the files of process 0
  COMMITTED.json           the same of every file above; without it there is no checkpoint

With sharded parameters `torch.distributed.checkpoint` writes instead: every process the part it holds
(shard-00001-model-00001-of-00002.safetensors ...), and nobody the whole. It also reads both kinds, into
tensors that are whole or sharded among any number of processes.
"""

from __future__ import annotations

import json
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cola_cli.artifacts import mirror
from cola_cli.artifacts.checkpoint_folders import COMMITTED, committed, prune, remove
from cola_cli.artifacts.files import (
    atomic_file,
    make_directory,
    sha256_file,
    sync,
    utf8_name,
    write_atomic,
    writing_failed,
)
from cola_cli.artifacts.reading import read_record
from cola_cli.errors import DamagedArtifact, Interrupted
from cola_cli.machine.processes import ALONE, World

STATE = "state.json"
TENSORS = "tensors.safetensors"
SHARDING = "DCP_SHARDING_INFO"  # of torch, in the header of a shard: JSON by tensor
REMEDY = (
    "Remove that checkpoint's directory to go on from the one before it; in a finished artifact, drop it by"
    " `cola verify --repair`, and begin another run with --from."
)
# Raised by the code below for a header or record of another shape.
_FOREIGN = (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


@dataclass
class Progress:
    """The state of a run beside its tensors: `state.json`. Floats survive JSON exactly."""

    step: int = 0  # updates done; also the reader's position
    validated: bool = True  # whether the validation due at `step` is done
    norm_average: float = 0.0
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # since the last row of metrics
    summed: int = 0


class _Written(BaseModel):
    """What is recorded of a file of a checkpoint."""

    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str


class Checkpoint:
    """A committed checkpoint, opened for reading by all processes; each checks its share of the files.

    Raises DamagedArtifact when a file is not what was written.
    """

    def __init__(self, path: Path, step: int, world: World = ALONE) -> None:
        self.path = path
        self.step = step
        self._world = world
        files = read_record(path / COMMITTED, dict[str, _Written], REMEDY, DamagedArtifact)
        if any(Path(name).name != name for name in files) or STATE not in files:
            raise _damaged(path / COMMITTED)
        self._files = files
        mirror.fetch_all(path / name for name in files)
        self._check(STATE)
        self.state = read_record(path / STATE, dict[str, Any], REMEDY, DamagedArtifact)
        names = sorted(name for name in files if name.endswith(".safetensors"))
        for name in names[world.rank :: world.size]:
            self._check(name)
        strangers = {file.name for file in path.glob("*.safetensors")}.difference(names)
        if strangers:
            raise DamagedArtifact(
                f"{path / min(strangers)} is not a part of that checkpoint.", "Remove it."
            )

    def names(self, group: str) -> list[str]:
        """The names of the tensors of a group, without it."""
        return [
            name.removeprefix(f"{group}.") for name in self._places if name.startswith(f"{group}.")
        ]

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Give tensors, whole or sharded, the values stored under their names; every process must call.

        Raises DamagedArtifact when a tensor, or a part of one, is not there.
        """
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        places = self._places
        for name, tensor in tensors.items():
            parts = places[name].chunks if name in places else []
            # torch does not mind a hole
            if sum(part.sizes.numel() for part in parts) != tensor.numel():
                raise _damaged(self.path)
        try:
            with warnings.catch_warnings(), torch.no_grad(), utf8_name(self.path) as place:
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
                dcp.load(
                    dict(tensors),
                    storage_reader=dcp.HuggingFaceStorageReader(str(place)),
                    process_group=self._world.files,
                    no_dist=self._world.size == 1,
                )
        except CheckpointException as error:  # torch puts whatever was raised into one, signals too
            for cause, _ in error.failures.values():
                if isinstance(cause, Interrupted):
                    raise cause from None
            raise _damaged(self.path) from error

    @cached_property
    def _places(self) -> dict[str, Any]:
        """Shape and parts of every tensor, from the headers of the files."""
        from torch.distributed.checkpoint import HuggingFaceStorageReader

        try:
            with utf8_name(self.path) as place:
                return HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata
        except (SafetensorError, OSError, ValueError, RuntimeError, *_FOREIGN) as error:
            raise _damaged(self.path) from error

    def _check(self, name: str) -> None:
        """Compare a file with its record."""
        path, record = self.path / name, self._files[name]
        if path.is_symlink() or not path.is_file() or path.stat().st_size != record.bytes:
            raise _damaged(path)
        if sha256_file(path) != record.sha256:
            raise _damaged(path)


def write(
    directory: Path,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any] | None,
    world: World,
) -> None:
    """Write the files of one process into the checkpoint of `step`; it counts once it is committed.

    Sharded tensors are written by all processes together, whole ones by the first alone.
    """
    path = directory / f"step-{step:08d}"
    make_directory(path)
    names = []
    if any(map(is_sharded, tensors.values())):
        _write_shards(path, tensors, world)
        names += [own.name for own in path.glob(f"shard-{world.rank + 1:05d}-*.safetensors")]
        for name in names:  # torch syncs before the last bytes have left its buffer
            _sort_metadata(path / name)
            sync(path / name)
            mirror.put(path / name)
    else:
        names.append(TENSORS)
        with atomic_file(path / TENSORS) as temporary:
            save_file(tensors, temporary)
    if state is not None:
        names.append(STATE)
        write_atomic(path / STATE, json.dumps(state, indent=2).encode())
    record = {
        name: {"bytes": (path / name).stat().st_size, "sha256": sha256_file(path / name)}
        for name in names
    }
    write_atomic(path / f"written-{world.rank:05d}.json", json.dumps(record, indent=2).encode())


def _write_shards(path: Path, tensors: dict[str, Tensor], world: World) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer, process_group=world.files)
    except CheckpointException as error:  # a BaseException, which nothing else would report
        causes = [cause for cause, _ in error.failures.values()]
        system = [cause for cause in causes if isinstance(cause, OSError)]
        raise (writing_failed(path, system[0]) if system else causes[0]) from error


def _sort_metadata(path: Path) -> None:
    """Order the metadata in the header of a safetensors file, which comes in another order each time."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = dict(sorted(header["__metadata__"].items()))
        metadata[SHARDING] = json.dumps(json.loads(metadata[SHARDING]), sort_keys=True)
        header["__metadata__"] = metadata
        sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(sorted_header) <= size
        file.seek(8)
        file.write(sorted_header.ljust(size))


def commit(directory: Path, step: int) -> None:
    """Make the checkpoint of `step` count; every process must have written its files."""
    path = directory / f"step-{step:08d}"
    record: dict[str, Any] = {}
    for file in sorted(path.glob("written-*.json")):
        record |= json.loads(file.read_bytes())
    write_atomic(path / COMMITTED, json.dumps(record, indent=2).encode())


class Saver:
    """Writes checkpoints in a thread while training goes on; one at a time, in order."""

    def __init__(
        self, directory: Path, keep_last: int, keep_every: int, always: int, world: World
    ) -> None:
        self._directory = directory
        self._keep = keep_last, keep_every, always
        self._world = world
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._busy: Future[None] | None = None
        self._uncommitted: int | None = None

    def begin(self, step: int) -> None:
        """Make room for the checkpoint of `step`; one process, before any writes."""
        remove(self._directory / f"step-{step:08d}")  # of a run that was killed before it committed
        make_directory(self._directory)

    def write(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any] | None) -> None:
        """Begin to write; `tensors` and `state` must not change any more."""
        self._uncommitted = step
        self._busy = self._thread.submit(write, self._directory, step, tensors, state, self._world)

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


def latest(directory: Path, world: World = ALONE) -> Checkpoint | None:
    """The newest committed checkpoint. Raises DamagedArtifact when its bytes are not those written."""
    found = committed(directory)
    return Checkpoint(found[-1][1], found[-1][0], world) if found else None


def _damaged(path: Path) -> DamagedArtifact:
    return DamagedArtifact(f"{path} is damaged.", REMEDY)


def is_sharded(tensor: Tensor) -> bool:
    """Whether processes hold different parts of it (`fully_shard`)."""
    return hasattr(tensor, "to_local")


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, of sharded tensors this process's part."""
    return {n: tensor.detach().to("cpu", copy=True).contiguous() for n, tensor in tensors.items()}


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


def empty_optimizer_tensors(
    optimizers: list[torch.optim.Optimizer], names: dict[Tensor, str], saved: list[str]
) -> dict[str, Tensor]:
    """The tensors `optimizer_tensors` would give, made as the names in `saved` say, to be filled."""
    keys: dict[str, list[str]] = {}
    for flat in saved:
        name, _, key = flat.rpartition(":")
        keys.setdefault(name, []).append(key)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for key in keys.get(names[parameter], ()):
                    # AdamW counts its updates where the parameter is
                    counts = key == "step"
                    optimizer.state[parameter][key] = (
                        torch.zeros((), device=parameter.device)
                        if counts
                        else torch.zeros_like(parameter)
                    )
    return optimizer_tensors(optimizers, names)
