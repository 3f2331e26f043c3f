"""Released checkpoints come in and go out byte for byte, and what is wrong with one is named."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cola_cli
from cola_cli.errors import ColaError, DamagedArtifact, InputError
from cola_cli.interop.released import prior_to_released, vae_to_released
from cola_cli.interop.tensors import read_tensors
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from tests import golden
from tests.conftest import Run

PARTS = ("cola_vae", "cola_dit")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint, free to be damaged."""
    folder = tmp_path / "released"
    shutil.copytree(golden.HERE / "cola_dlm", folder / "cola_dlm")
    return folder


def same_bytes(first: Path, second: Path) -> None:
    for part in PARTS:
        ours, theirs = (read_tensors(f / "cola_dlm" / part) for f in (first, second))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


def test_the_paper_sized_pair_has_the_released_keys() -> None:
    with torch.device("meta"):
        vae, prior = TextVAE(TextVAEConfig(vocab_size=100_278)), Prior(PriorConfig())
        assert len(vae_to_released(vae)) == 133
        released = prior_to_released(prior)
    assert len(released) == 470
    assert released["blocks.23.ada.msa_in.1.weight"].shape == (4096, 2048)
    assert released["blocks.0.msa.rope.rope.freqs"].shape == (48,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_import_then_export_gives_back_every_byte(
    cola: Run, checkpoint: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    for part in PARTS:
        path = checkpoint / "cola_dlm" / part / "model.safetensors"
        save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path)
    cola("import", checkpoint, "-o", "artifact")
    cola("export", "artifact", "-o", "again")
    same_bytes(checkpoint, tmp_path / "again")
    z = golden.tensors()["decode.z"][None]
    reopened, original = (cola_cli.load(folder) for folder in (tmp_path / "again", checkpoint))
    assert torch.equal(reopened.decode(z), original.decode(z))
    assert "up to date" in cola("import", checkpoint, "-o", "artifact").stdout
    assert cola("verify", "artifact").stdout.startswith("artifact: complete")
    for part in PARTS:
        ours, theirs = (
            json.loads((f / "cola_dlm" / part / "config.json").read_text())
            for f in (tmp_path / "again", checkpoint)
        )
        shared = theirs.keys() & ours.keys() - {"dtype", "transformers_version"}
        assert {k: ours[k] for k in shared} == {k: theirs[k] for k in shared}
        assert theirs.keys() - ours.keys() <= {"transformers_version"}


def test_shards_with_an_index_go_both_ways(cola: Run, checkpoint: Path, tmp_path: Path) -> None:
    cola("import", checkpoint, "-o", "artifact")
    cola("export", "artifact", "-o", "sharded", "--max-shard-gib", 3e-4)
    folder = tmp_path / "sharded/cola_dlm/cola_dit"
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert (folder / "model.safetensors.index.json").exists()
    same_bytes(checkpoint, tmp_path / "sharded")


def test_an_imported_artifact_and_the_folder_are_the_same_model(
    cola: Run, checkpoint: Path, tmp_path: Path
) -> None:
    cola("import", checkpoint, "-o", "artifact")
    z = golden.tensors()["decode.z"][None]
    models = [
        cola_cli.load(p) for p in (tmp_path / "artifact", checkpoint, checkpoint / "cola_dlm")
    ]
    logits = [model.decode(z) for model in models]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[1], logits[2])
    assert models[0].tokenizer is None


def test_an_export_can_round_to_bf16(cola: Run, checkpoint: Path, tmp_path: Path) -> None:
    cola("import", checkpoint, "-o", "artifact")
    cola("export", "artifact", "-o", "rounded", "--dtype", "bfloat16")
    for part in PARTS:
        whole = load_file(checkpoint / "cola_dlm" / part / "model.safetensors")
        rounded = load_file(tmp_path / "rounded/cola_dlm" / part / "model.safetensors")
        assert rounded.keys() == whole.keys()
        for name, value in whole.items():
            # rotary frequencies are a buffer, not weights
            expected = value if name.endswith("freqs") else value.bfloat16()
            assert torch.equal(rounded[name], expected), name


def test_an_export_does_not_touch_a_folder_in_use(
    cola: Run, checkpoint: Path, tmp_path: Path
) -> None:
    cola("import", checkpoint, "-o", "artifact")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    assert "not an empty directory" in cola("export", "artifact", "-o", "mine", expect=3).stderr


def _edit_config(checkpoint: Path, part: str, **changes: object) -> None:
    path = checkpoint / "cola_dlm" / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_tensors(checkpoint: Path, part: str, **changes: torch.Tensor | None) -> None:
    path = checkpoint / "cola_dlm" / part / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: _edit_tensors(c, "cola_dit", **{"txt_in.proj.bias": None}), "txt_in.proj.bias is missing"),
        (lambda c: _edit_tensors(c, "cola_vae", extra=torch.zeros(1)), "extra is not part of this model"),
        (
            lambda c: _edit_tensors(c, "cola_vae", **{"decoder.final_norm.bias": torch.zeros(3)}),
            r"decoder.final_norm.bias has shape \(3,\) instead of \(64,\)",
        ),
        (
            lambda c: _edit_tensors(c, "cola_dit", **{"txt_in.proj.bias": torch.zeros(64).long()}),
            "txt_in.proj.bias is torch.int64",
        ),
        (
            lambda c: _edit_tensors(c, "cola_dit", **{"blocks.1.msa.rope.rope.freqs": torch.zeros(6)}),
            "rotary frequencies of block 1 differ",
        ),
        (lambda c: _edit_config(c, "cola_dit", num_layers=4), "blocks.3.* is missing"),
        (lambda c: _edit_config(c, "cola_vae", dim=66), "config.json: dim 66 must be divisible"),
        (lambda c: _edit_config(c, "cola_vae", post_norm=False), "post_norm = False is not supported"),
        (lambda c: _edit_config(c, "cola_vae", latent_dim="8"), "latent_dim = '8' is not of type int"),
        (lambda c: _edit_config(c, "cola_dit", emb_dim=32), "emb_dim = 32"),
        (lambda c: _edit_config(c, "cola_dit", txt_in_channels=4, txt_out_channels=4), "8 latent channels"),
        (lambda c: shutil.rmtree(c / "cola_dlm/cola_dit"), "lacks cola_dlm/cola_vae"),
        (lambda c: (c / "cola_dlm/cola_vae/model.safetensors").unlink(), "neither model.safetensors nor"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_together_is_bad_input(
    checkpoint: Path, damage: object, message: str
) -> None:
    damage(checkpoint)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        cola_cli.load(checkpoint)
    assert caught.value.exit_code == 4
    assert caught.value.remedy


def _header_length(data: bytes, length: int) -> bytes:
    return struct.pack("<Q", length) + data[8:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-5],
        lambda data: data[:6],
        lambda data: b"",
        lambda data: data + b"surplus",
        lambda data: _header_length(data, 2**60),
        lambda data: _header_length(data, len(data)),
        lambda data: _header_length(data, 3),
        lambda data: data[:8] + b"\xff" * 40 + data[48:],
    ],
    ids=["cut", "stub", "empty", "longer", "huge", "whole", "short", "garbage"],
)
def test_a_file_that_is_not_whole_is_damage_and_named(
    cola: Run, checkpoint: Path, damage: object
) -> None:
    path = checkpoint / "cola_dlm/cola_dit/model.safetensors"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DamagedArtifact, match=r"cola_dit/model\.safetensors"):
        read_tensors(path.parent)


def test_an_index_that_lies_is_damage(checkpoint: Path) -> None:
    folder = checkpoint / "cola_dlm/cola_dit"
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    names = list(load_file(folder / "part.safetensors"))
    index = folder / "model.safetensors.index.json"
    for weight_map in (
        dict.fromkeys(names[1:], "part.safetensors"),
        dict.fromkeys([*names, "more"], "part.safetensors"),
        dict.fromkeys(names, "../part.safetensors"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(DamagedArtifact):
            cola_cli.load(checkpoint)


def test_text_needs_a_tokenizer(cola: Run, checkpoint: Path) -> None:
    result = cola("sample", checkpoint, "--prompt", "a", expect=4)
    assert "has no tokenizer.json" in result.stderr
    assert "Traceback" not in result.stderr
    with pytest.raises(ColaError, match=r"no tokenizer\.json"):
        cola_cli.load(checkpoint).generate(["a"])
