"""safetensors files, memory-mapped.

The library itself checks that the header is whole and that the tensors fill the rest of the file exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator, BaseModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cola_cli.artifacts.files import utf8_name
from cola_cli.artifacts.reading import read_record, reason
from cola_cli.errors import DamagedArtifact, InputError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
REMEDY = "Fetch the checkpoint again."


def _inside_the_folder(name: str) -> str:
    if Path(name).name != name:
        raise ValueError(f"shard {name!r} leaves the folder")
    return name


class _Index(BaseModel):
    """The index of the shards: which tensor is in which file."""

    weight_map: dict[str, Annotated[str, AfterValidator(_inside_the_folder)]]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors` in a folder, or of the shards that its index names.

    The tensors are views of the mapped files. Raises InputError when the files are missing,
    DamagedArtifact when one is truncated, its header lies, or the index disagrees with it.
    """
    if (folder / WEIGHTS).is_file():
        return _read_file(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise InputError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}.", "Name a folder that holds the weights."
        )
    weight_map = read_record(folder / INDEX, _Index, REMEDY, DamagedArtifact).weight_map
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        held = _read_file(folder / shard)
        for name in held:
            if weight_map.get(name) != shard:
                raise DamagedArtifact(
                    f"{folder / shard} holds {name}, which {INDEX} does not place there.",
                    REMEDY,
                )
        tensors |= held
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise DamagedArtifact(f"{folder}: {missing[0]} is in {INDEX} but in no shard.", REMEDY)
    return tensors


def require_fit(
    tensors: dict[str, Tensor], expected: dict[str, Tensor], where: Path, remedy: str
) -> None:
    """Raise InputError naming the first tensor that is missing, surplus, misshapen or not of weights.

    expected: the state of the network that the tensors of `where` are to be given to.
    """
    for name, tensor in expected.items():
        if name not in tensors:
            raise InputError(f"{where}: the tensor {name} is missing.", remedy)
        if tensors[name].shape != tensor.shape:
            raise InputError(
                f"{where}: the tensor {name} has shape {tuple(tensors[name].shape)} instead of"
                f" {tuple(tensor.shape)}.",
                remedy,
            )
        if tensors[name].dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"{where}: the tensor {name} is {tensors[name].dtype}.", remedy)
    if surplus := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{where}: the tensor {surplus[0]} is not part of this model.", remedy)


def require_finite(tensors: dict[str, Tensor], where: Path, remedy: str) -> None:
    """Raise DamagedArtifact naming the first tensor that holds infinity or NaN."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.element_size() == 1:
            continue  # torch cannot tell of eight bits; `require_fit` refuses them
        if not tensor.isfinite().all():
            raise DamagedArtifact(f"{where}: the weights {name} hold infinity or NaN.", remedy)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with utf8_name(path) as place, safe_open(place, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedArtifact(
            f"{path} is not a whole safetensors file ({reason(error)}).", REMEDY
        ) from error
    require_finite(tensors, path, REMEDY)
    return tensors
