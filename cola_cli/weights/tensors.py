"""safetensors files, memory-mapped, their headers checked before anything is believed."""

from __future__ import annotations

import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from cola_cli.artifacts.reading import parse_json, reason
from cola_cli.errors import DamagedArtifact, InputError

HEADER_LIMIT = 100 << 20  # bytes, the format's own limit
INDEX_LIMIT = 64 << 20  # bytes
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


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
    weight_map = _read_index(folder / INDEX)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        held = _read_file(folder / shard)
        for name in held:
            if weight_map.get(name) != shard:
                raise DamagedArtifact(
                    f"{folder / shard} holds {name}, which {INDEX} does not place there.",
                    "Fetch the checkpoint again.",
                )
        tensors |= held
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise DamagedArtifact(
            f"{folder}: {missing[0]} is in {INDEX} but in no shard.", "Fetch the checkpoint again."
        )
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > INDEX_LIMIT:
            raise ValueError("it is too large")
        weight_map = parse_json(path.read_bytes())["weight_map"]
        for shard in weight_map.values():
            if Path(shard).name != shard:
                raise ValueError(f"shard {shard!r} leaves the folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedArtifact(
            f"{path} is no index of safetensors shards ({reason(error)}).",
            "Fetch the checkpoint again.",
        ) from error
    return weight_map


def _read_file(path: Path) -> dict[str, Tensor]:
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedArtifact(
            f"{path} is no whole safetensors file ({reason(error)}).", "Fetch the checkpoint again."
        ) from error


def check_header(path: Path) -> None:
    """Raise DamagedArtifact unless the header's length and the tensors' extents fit the file's size."""
    remedy = "Fetch the checkpoint again."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise DamagedArtifact(
                    f"{path} is damaged: it has {size} bytes and claims a header of {length}.",
                    remedy,
                )
            header = parse_json(file.read(length))
        ends = [
            entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
        ]
        held = size - 8 - length
        if max(ends, default=0) != held:
            raise DamagedArtifact(
                f"{path} is truncated or damaged: its tensors need {max(ends, default=0)} bytes,"
                f" it holds {held}.",
                remedy,
            )
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).", "Check the file.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DamagedArtifact(f"{path} has a damaged header ({reason(error)}).", remedy) from error
