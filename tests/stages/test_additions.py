"""cola tokenize --add: parts for new files beside those that are there, and their latents alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.kinds import Latents, Tokens
from cola_cli.artifacts.manifest import NEW, read_manifest
from cola_cli.artifacts.verify import verify
from cola_cli.corpus.tokenizer import load_tokenizer
from cola_cli.errors import InputError, OutputConflict, UsageError
from cola_cli.families import PRIOR, TEXT_VAE
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.run import Outcome
from cola_cli.stages.status import survey
from cola_cli.stages.tokenize import tokenize
from cola_cli.stages.train import train
from tests.artifacts.test_replacement import Killed, killing
from tests.conftest import CPU, content
from tests.stages.conftest import made_up_text, prior_settings, vae_settings

# the last part of what is tokenized first is not full
SETTINGS = TokenizeSettings(
    vocab_size=300, seq_len=32, part_bytes=5000, workers=1, validation_fraction=0.2
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with two files that are tokenized at `tokens` beside it; a third one waits."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, seed in (("b", 1), ("c", 2)):
        (folder / f"{name}.txt").write_text(made_up_text(200, seed))
    tokenize([str(folder)], tmp_path / "tokens", SETTINGS)
    return folder


def grow(texts: Path, *more: str) -> Outcome:
    output = texts.parent / "tokens"
    return tokenize([str(texts), *more], output, SETTINGS, add=True)


def parts(artifact: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (artifact / "parts").glob("*.parquet")}


def documents(artifact: Path) -> list[str]:
    """The text of all documents in the order of their numbers."""
    tokens = Tokens.open(artifact)
    tokenizer = load_tokenizer(tokens.file("tokenizer.json"), None)
    pieces: dict[tuple[int, int], list[int]] = {}
    for index in range(len(tokens.parts)):
        for row in pq.read_table(tokens.part_file(index)).to_pylist():
            start = 0
            for segment in row["segments"]:
                place = segment["document"], segment["offset"]
                pieces[place] = row["tokens"][start : start + segment["length"]]
                start += segment["length"]
    whole: dict[int, list[int]] = {}
    for (document, _), ids in sorted(pieces.items()):
        whole.setdefault(document, []).extend(ids)
    assert sorted(whole) == list(range(len(whole)))
    return [tokenizer.decode(ids[:-1]) for _, ids in sorted(whole.items())]


def test_new_files_become_parts_beside_those_that_are_there(texts: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    before, text = parts(tokens), documents(tokens)
    tokenizer = (tokens / "tokenizer.json").read_bytes()
    assert not grow(texts).changed  # nothing is new
    new = made_up_text(150, 3)
    again = "\n\n".join(text[:5])  # documents that are there already
    (texts / "a.txt").write_text(f"{new}\n\n{again}\n\nÜber Bäume: 100 %.")
    made = grow(texts)
    assert made.statistics["duplicates"] >= 5
    assert before.items() < parts(tokens).items()
    assert (tokens / "tokenizer.json").read_bytes() == tokenizer
    found = documents(tokens)
    assert found[: len(text)] == text
    assert {*found} == {*text, *new.split("\n\n"), "Über Bäume: 100 %."}
    assert len(found) == made.statistics["documents"]
    totals = made.statistics["splits"]
    assert sum(split["documents"] for split in totals.values()) == len(found)
    assert verify(tokens).findings == []
    # step by step or at once, and with names of other forms, it comes to the same
    (texts / "d.txt").write_text(made_up_text(100, 4))
    grow(Path(os.path.relpath(texts)).resolve(), str(tmp_path / "texts/../texts/a.txt"))
    assert documents(tokens)[: len(found)] == found
    assert [*read_manifest(tokens).identity.inputs] == ["corpus", "added 1", "added 2"]
    assert not grow(texts).changed


def test_what_was_there_must_be_there_and_as_it_was(texts: Path, tmp_path: Path) -> None:
    before = content(tmp_path / "tokens")
    (texts / "a.txt").write_text(made_up_text(150, 3))
    kept = (texts / "b.txt").read_text()
    (texts / "b.txt").write_text(kept.replace("red", "old"))
    with pytest.raises(OutputConflict, match=r"b\.txt has changed"):
        grow(texts)
    (texts / "b.txt").unlink()
    with pytest.raises(InputError, match=r"there is no .*b\.txt, of which") as gone:
        grow(texts)
    assert "--overwrite" not in str(gone.value.remedy)  # it would be made of less text
    (texts / "b.txt").write_text(kept)  # at another time: its content counts
    other = SETTINGS.model_copy(update={"seq_len": 64})
    with pytest.raises(OutputConflict, match="seq_len: 32 -> 64"):
        tokenize([str(texts)], tmp_path / "tokens", other, add=True)
    with pytest.raises(OutputConflict, match=r"input corpus: .*--add"):
        tokenize([str(texts)], tmp_path / "tokens", SETTINGS)
    with pytest.raises(UsageError, match="by one process"):
        tokenize([str(texts)], tmp_path / "tokens", SETTINGS, shard=(0, 2), add=True)
    with pytest.raises(InputError, match="is not an artifact"):
        tokenize([str(texts)], tmp_path / "none", SETTINGS, add=True)
    assert content(tmp_path / "tokens") == before
    assert grow(texts).changed


def test_the_way_on_from_an_addition_that_failed_is_to_add(texts: Path, tmp_path: Path) -> None:
    bad = texts / "bad.txt"
    bad.write_bytes(b"new\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        grow(texts)
    (state,) = survey(tmp_path / "tokens")
    assert state.next == f"cola tokenize ... -o {tmp_path}/tokens --add"
    bad.unlink()
    assert not grow(texts).changed


def test_only_the_new_parts_are_encoded(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, vae, latents = (tmp_path / name for name in ("tokens", "vae", "latents"))
    train(TEXT_VAE, tokens, vae, vae_settings(steps=2), CPU)
    encode(tokens, vae, latents, EncodeSettings(), CPU)
    train(PRIOR, latents, tmp_path / "prior", prior_settings(steps=2), CPU)
    before = parts(latents)
    (texts / "a.txt").write_text(made_up_text(150, 3))
    grow(texts)
    (texts / "d.txt").write_text(made_up_text(100, 4))
    grow(texts)
    states = {Path(state.path).name: state for state in survey(tmp_path)}
    assert states["vae"].state == "complete"  # it was trained on text that is still there
    assert states["latents"].state == "stale (tokens grew)"
    assert states["latents"].next == f"cola encode {tokens} --vae {vae} -o {latents}"
    made = []
    work = encode.__globals__["_encode_part"]

    def counted(tokens: Tokens, part: object, *rest: object) -> None:
        made.append(part)
        work(tokens, part, *rest)

    monkeypatch.setitem(encode.__globals__, "_encode_part", counted)
    encode(tokens, vae, latents, EncodeSettings(), CPU)
    assert len(made) == len(Tokens.open(tokens).parts) - len(before)
    assert before.items() < parts(latents).items()
    assert {state.state for state in survey(tmp_path)} == {"complete"}
    encode(tokens, vae, tmp_path / "fresh", EncodeSettings(), CPU)
    assert content(tmp_path / "fresh") == content(latents)
    assert Latents.open(latents).statistics == Latents.open(tmp_path / "fresh").statistics
    other = EncodeSettings(compression_level=2)
    with pytest.raises(OutputConflict):
        encode(tokens, vae, latents, other, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenize", "encode"])
def test_a_kill_at_any_change_leaves_the_old_artifact_or_the_way_to_the_new_one(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    tokens, vae, latents = (tmp_path / name for name in ("tokens", "vae", "latents"))
    if stage == "encode":
        train(TEXT_VAE, tokens, vae, vae_settings(steps=2), CPU)
        encode(tokens, vae, latents, EncodeSettings(), CPU)
    (texts / "a.txt").write_text(made_up_text(30, 3))
    run: Callable[[], Outcome] = lambda: grow(texts)  # noqa: E731
    place = tokens
    if stage == "encode":
        grow(texts)
        run, place = (lambda: encode(tokens, vae, latents, EncodeSettings(), CPU)), latents
    shutil.copytree(place, tmp_path / "old")
    run()
    shutil.copytree(place, tmp_path / "wanted")
    old, wanted = content(tmp_path / "old"), content(tmp_path / "wanted")
    after, ended = 0, False
    while not ended:
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "old", place)
        with monkeypatch.context() as patch:
            killing(patch, after)
            try:
                run()
                ended = True
            except Killed:
                pass
        if stage == "encode" and (place / NEW / "manifest.json").exists():
            (state,) = (one for one in survey(tmp_path) if one.path == str(place))
            assert state.next == f"cola encode {tokens} --vae {vae} -o {latents}"
        if read_manifest(place).fingerprint == read_manifest(tmp_path / "old").fingerprint:
            Artifact.open(place)
            assert old.items() <= content(place).items()
        run()
        assert content(place) == wanted
        assert verify(place).findings == []
        after += 3
    assert after > 30
