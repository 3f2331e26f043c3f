"""A model folder tells the same of our artifact and of the released checkpoint that was exported from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cola_cli.errors import InputError
from cola_cli.weights.folder import open_model_folder

MADE = Path(__file__).parent.parent / "format1" / "run"


def test_an_artifact_and_its_export_have_the_same_configs_tokenizer_and_weights() -> None:
    ours, theirs = open_model_folder(MADE / "prior"), open_model_folder(MADE / "released")
    assert ours.artifact is not None
    assert theirs.artifact is None
    assert ours.configs() == theirs.configs()
    assert (ours.context, theirs.context) == (32, None)
    tokenizers = [folder.tokenizer() for folder in (ours, theirs)]
    assert tokenizers[0] is not None
    assert tokenizers[1] is not None
    assert tokenizers[0].to_bytes() == tokenizers[1].to_bytes()
    for first, second in zip(ours.load(), theirs.load(), strict=True):
        states = first.state_dict(), second.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_fingerprint_is_the_manifests_or_that_of_the_files(tmp_path: Path) -> None:
    ours = open_model_folder(MADE / "prior")
    assert ours.artifact is not None
    assert ours.fingerprint() == ours.artifact.manifest.fingerprint
    shutil.copytree(MADE / "released", tmp_path / "copy")
    before = open_model_folder(tmp_path / "copy").fingerprint()
    assert before == open_model_folder(MADE / "released").fingerprint()
    (tmp_path / "copy" / "notes.txt").write_text("no part of the model")
    assert open_model_folder(tmp_path / "copy").fingerprint() == before
    with (tmp_path / "copy" / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert open_model_folder(tmp_path / "copy").fingerprint() != before


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none does not exist"):
        open_model_folder(tmp_path / "none")
    with pytest.raises(InputError, match="neither an artifact nor a released checkpoint"):
        open_model_folder(tmp_path)
    with pytest.raises(
        InputError, match="is an artifact of kind autoregressive, but one of kind prior"
    ):
        open_model_folder(MADE / "ar").configs()
