"""Writing the released layout."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from cola_cli.artifacts.files import TEMPORARY, atomic_file, temporary_directory, write_atomic
from cola_cli.artifacts.manifest import pretty_json
from cola_cli.errors import OutputConflict
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.weights.released import (
    PRIOR,
    ROOT,
    TOKENIZER,
    VAE,
    prior_to_released,
    released_configs,
    vae_to_released,
)
from cola_cli.weights.tensors import INDEX, WEIGHTS


def write_checkpoint(
    folder: Path, vae: TextVAE, prior: Prior, tokenizer: bytes | None, max_shard_bytes: int
) -> None:
    """Write `cola_dlm/` and `tokenizer.json` below `folder`, whole or not at all.

    Weights above `max_shard_bytes` are split into shards with an index. Raises OutputConflict when the
    folder holds anything.
    """
    found = [*folder.iterdir()] if folder.is_dir() else [folder] if folder.exists() else []
    if not all(TEMPORARY.search(path.name) for path in found):
        raise OutputConflict(
            f"{folder} is not an empty directory.", "Name a new directory for the export."
        )
    dtype = str(prior.latent_in.weight.dtype).removeprefix("torch.")
    vae_document, prior_document = released_configs(vae.config, prior.config, dtype)
    with temporary_directory(folder) as place:
        _write_weights(place / ROOT / VAE, vae_to_released(vae), max_shard_bytes)
        write_atomic(place / ROOT / VAE / "config.json", pretty_json(vae_document))
        _write_weights(place / ROOT / PRIOR, prior_to_released(prior), max_shard_bytes)
        write_atomic(place / ROOT / PRIOR / "config.json", pretty_json(prior_document))
        if tokenizer is not None:
            write_atomic(place / TOKENIZER, tokenizer)
        os.replace(place / ROOT, folder / ROOT)  # fails if another process was faster
        if tokenizer is not None:
            os.replace(place / TOKENIZER, folder / TOKENIZER)


def _write_weights(folder: Path, tensors: dict[str, Tensor], max_shard_bytes: int) -> None:
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        _save(folder / WEIGHTS, shards[0])
        return
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _save(folder / name, shard)
    places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_atomic(folder / INDEX, pretty_json(index))


def _split(tensors: dict[str, Tensor], max_shard_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in sorted(tensors.items()):
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    return shards


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    # every layer's rotary frequencies are one tensor here; the format wants each entry on its own
    own = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(own, temporary, metadata={"format": "pt"})
