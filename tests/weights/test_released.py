"""Released checkpoints come in and go out byte for byte, and what is wrong with one is named."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cola_cli
from cola_cli.artifacts.files import write_atomic
from cola_cli.errors import ColaError, DamagedArtifact, InputError
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.weights.export import write_checkpoint
from cola_cli.weights.released import prior_to_released, vae_to_released
from cola_cli.weights.tensors import read_tensors, require_fit
from tests import golden
from tests.conftest import Run, content

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


def released_shapes() -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Keys and shapes of the released VAE and prior, as the paper's notes on its code list them."""
    vae: dict[str, tuple[int, ...]] = {
        "encoder.wte.weight": (100_279, 1536),
        "encoder.patch_embedder.weight": (1536, 1536, 1), "encoder.patch_embedder.bias": (1536,),
        "encoder.final_layer.weight": (32, 1536), "encoder.final_layer.bias": (32,),
        "decoder.in_layer.weight": (1536, 16), "decoder.in_layer.bias": (1536,),
        "decoder.unpatch_layer.weight": (1536, 1536), "decoder.unpatch_layer.bias": (1536,),
        "decoder.final_norm.weight": (1536,), "decoder.final_norm.bias": (1536,),
        "decoder.final_layer.weight": (100_278, 1536), "decoder.final_layer.bias": (100_278,),
    }  # fmt: skip
    for side in ("encoder", "decoder"):
        for layer in range(4):
            at = f"{side}.blocks.{layer}"
            vae[f"{at}.qkv_proj.weight"] = (4608, 1536)
            for name in ("norm_attn", "q_norm", "k_norm", "norm_ffn"):
                vae |= {f"{at}.{name}.weight": (1536,), f"{at}.{name}.bias": (1536,)}
            for name, out, width in (
                ("attn_out_proj", 1536, 1536), ("ffn_proj", 6144, 1536), ("ffn_out", 1536, 3072)
            ):  # fmt: skip
                vae |= {f"{at}.{name}.weight": (out, width), f"{at}.{name}.bias": (out,)}
    prior: dict[str, tuple[int, ...]] = {
        "txt_out_norm.weight": (2048,),
        "txt_out_norm.bias": (2048,),
    }
    linears = [
        ("txt_in.proj", 2048, 16), ("emb_in.proj_in", 2048, 256), ("emb_in.proj_hid", 2048, 2048),
        ("emb_in.proj_out", 2048, 2048), ("txt_out_ada.out_in.1", 4096, 2048), ("txt_out.proj", 16, 2048),
    ]  # fmt: skip
    for layer in range(24):
        at = f"blocks.{layer}"
        prior[f"{at}.msa.proj_qkv.weight"] = (6144, 2048)
        prior[f"{at}.msa.proj_out.weight"] = (2048, 2048)
        prior[f"{at}.msa.rope.rope.freqs"] = (48,)
        for name in ("norm_q", "norm_k"):
            prior |= {f"{at}.msa.{name}.weight": (128,), f"{at}.msa.{name}.bias": (128,)}
        linears += [(f"{at}.mlp.proj_in", 8192, 2048), (f"{at}.mlp.proj_out", 2048, 8192)]
        linears += [(f"{at}.ada.{part}_in.1", 4096, 2048) for part in ("msa", "mlp")]
        linears += [(f"{at}.ada.{part}_out.1", 2048, 2048) for part in ("msa", "mlp")]
    for name, out, width in linears:
        prior |= {f"{name}.weight": (out, width), f"{name}.bias": (out,)}
    return vae, prior


def test_the_paper_sized_pair_has_the_released_keys_and_shapes() -> None:
    with torch.device("meta"):
        networks = TextVAE(TextVAEConfig(vocab_size=100_278)), Prior(PriorConfig())
        found = vae_to_released(networks[0]), prior_to_released(networks[1])
    for tensors, expected in zip(found, released_shapes(), strict=True):
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    assert [len(tensors) for tensors in found] == [133, 470]


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


@pytest.mark.parametrize("after", range(2))
def test_an_export_that_fails_or_is_killed_leaves_the_way_to_a_whole_one(
    cola: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    cola("import", checkpoint, "-o", "artifact")
    written = []

    def full(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) > after:
            raise OSError(errno.ENOSPC, "full", str(path))
        write_atomic(path, data)

    place = write_checkpoint.__globals__
    monkeypatch.setitem(place, "write_atomic", full)
    said = cola("export", "artifact", "-o", "new", expect=1).stderr
    assert "the disk is full" in said
    assert not [*(tmp_path / "new").iterdir()]
    # as of a process that was killed before it could take it away
    (tmp_path / "new/new.tmp-99999999/cola_dlm").mkdir(parents=True)
    monkeypatch.setitem(place, "write_atomic", write_atomic)
    cola("export", "artifact", "-o", "new")
    cola("export", "artifact", "-o", "wanted")
    assert content(tmp_path / "new") == content(tmp_path / "wanted")


def test_of_two_exports_at_once_one_is_refused(
    cola: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cola("import", checkpoint, "-o", "artifact")
    other = tmp_path / "new/cola_dlm/theirs"

    def slow(*given: Any) -> None:
        other.mkdir(parents=True, exist_ok=True)  # another process is faster
        write_atomic(*given)

    monkeypatch.setitem(write_checkpoint.__globals__, "write_atomic", slow)
    assert "another process" in cola("export", "artifact", "-o", "new", expect=3).stderr
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["cola_dlm", "theirs"]


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
        (lambda c: _edit_config(c, "cola_vae", latent_dim="8"), "latent_dim = '8' is not possible"),
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
def test_a_file_that_is_not_whole_is_damage_and_named(checkpoint: Path, damage: object) -> None:
    path = checkpoint / "cola_dlm/cola_dit/model.safetensors"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DamagedArtifact, match=r"cola_dit/model\.safetensors"):
        read_tensors(path.parent)


def test_the_command_says_in_one_sentence_what_is_wrong(
    cola: Run, checkpoint: Path, tmp_path: Path
) -> None:
    path = checkpoint / "cola_dlm/cola_dit/model.safetensors"
    whole = path.read_bytes()
    _edit_config(checkpoint, "cola_dit", num_layers=4)
    refused = cola("import", checkpoint, "-o", "artifact", expect=4).stderr
    path.write_bytes(whole[:-5])
    damaged = cola("import", checkpoint, "-o", "artifact", expect=5).stderr
    assert "blocks.3" in refused
    assert "cola_dit/model.safetensors" in damaged
    for said in (refused, damaged):
        assert "Traceback" not in said
        assert len([line for line in said.splitlines() if line.startswith("cola: ")]) == 1
    assert not (tmp_path / "artifact/manifest.json").exists()


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


def test_weights_of_eight_bits_are_refused_by_name(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2).to(torch.float8_e4m3fn)}
    save_file(weights, tmp_path / "model.safetensors")
    held = read_tensors(tmp_path)
    with pytest.raises(InputError, match=r"the tensor a is torch\.float8_e4m3fn"):
        require_fit(held, {"a": torch.ones(2)}, tmp_path, "")
