"""What `cola status` says of a run's directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cola_cli.artifacts import Identity, Output
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.cli.main import app
from cola_cli.reporting import Silent
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.encode import encode
from cola_cli.stages.status import survey
from cola_cli.stages.tokenize import tokenize
from tests.artifacts.test_promises import identity, make
from tests.conftest import CPU


def _latents(path: Path, tokens_fingerprint: str) -> None:
    made_from = Identity(stage="encode", settings={}, inputs={"tokens": tokens_fingerprint})
    with Output.open(path, "latents", made_from).writing() as writer:
        writer.finish()


def test_complete_running_abandoned_and_stale_are_told_apart(tmp_path: Path) -> None:
    tokens = make(tmp_path / "tokens")
    _latents(tmp_path / "latents", tokens.manifest.fingerprint)
    with Output.open(tmp_path / "other", "tokens", identity(seq_len=9)).writing():
        states = {Path(s.path).name: s for s in survey(tmp_path)}
        assert states["tokens"].state == "complete"
        assert states["latents"].inputs == [f"tokens {tmp_path / 'tokens'}"]
        assert states["other"].state.startswith("running (process ")
    states = {Path(s.path).name: s for s in survey(tmp_path)}
    assert states["other"].state == "abandoned"
    make_anew = Output.open(tmp_path / "tokens", "tokens", identity(seq_len=8), overwrite=True)
    with make_anew.writing() as writer:
        writer.finish()
    states = {Path(s.path).name: s for s in survey(tmp_path)}
    assert states["latents"].state == "stale (tokens changed)"
    assert states["latents"].next.endswith("--overwrite")


def test_what_was_made_of_something_stale_is_stale_and_the_next_command_can_be_typed(
    tmp_path: Path,
) -> None:
    tokens = make(tmp_path / "my tokens")
    _latents(tmp_path / "latents", tokens.manifest.fingerprint)
    latents = read_manifest(tmp_path / "latents")
    made_from = Identity(stage="train prior", settings={}, inputs={"latents": latents.fingerprint})
    steps = {"train": {"steps": 60}}
    with Output.open(tmp_path / "prior", "prior", made_from, steps).writing():
        (tmp_path / "prior/checkpoints/step-00000020").mkdir(parents=True)
        (tmp_path / "prior/checkpoints/step-00000020/COMMITTED.json").touch()
        (tmp_path / "prior/checkpoints/step-00000040").mkdir()  # was killed before it counted
    states = {Path(s.path).name: s for s in survey(tmp_path)}
    assert states["my tokens"].next == f"cola train vae '{tmp_path}/my tokens' -o VAE"
    assert states["prior"].progress == "step 20 of 60"
    assert states["prior"].next == f"cola train prior {tmp_path}/latents -o {tmp_path}/prior"
    with Output.open(tmp_path / "prior", "prior", made_from, steps).writing() as writer:
        writer.finish()
    make_anew = Output.open(tmp_path / "my tokens", "tokens", identity(seq_len=8), overwrite=True)
    with make_anew.writing() as writer:
        writer.finish()
    states = {Path(s.path).name: s for s in survey(tmp_path)}
    assert states["prior"].state == "stale (latents changed)"
    assert (
        states["latents"].next == f"cola encode TOKENS --vae VAE -o {tmp_path}/latents --overwrite"
    )


def test_a_replacement_in_progress_is_shown_with_the_old_artifact(tmp_path: Path) -> None:
    make(tmp_path / "tokens")
    new = Output.open(tmp_path / "tokens", "tokens", identity(seq_len=8), overwrite=True)
    with new.writing() as writer:
        with writer.part(0, suffix=".bin") as part:
            part.path.write_bytes(b"new")
        (state,) = survey(tmp_path)
        assert state.state == "complete"
        assert state.replacement.startswith("running (process ")
        assert state.replacement.endswith("1 parts")
        assert state.next == ""
    (state,) = survey(tmp_path)
    assert state.replacement == "abandoned, 1 parts"
    assert state.next == f"cola tokenize ... -o {tmp_path}/tokens --overwrite"
    shown = CliRunner().invoke(app, ["status", str(tmp_path)]).stdout
    assert "complete; a new one abandoned, 1 parts" in shown
    with new.writing() as writer:
        writer.finish()
    (state,) = survey(tmp_path)
    assert (state.state, state.replacement) == ("complete", "")


class Watching(Silent):
    """Looks at an artifact whenever the stage that makes it begins a task."""

    def __init__(self, artifact: Path) -> None:
        self.artifact = artifact
        self.seen: dict[str, str] = {}

    def start(self, what: str, total: int | None, unit: str, done: int = 0) -> None:
        self.seen[what] = survey(self.artifact)[0].state


@pytest.mark.parametrize("stage", ["tokenize", "encode"])
def test_a_shard_is_running_between_the_moments_in_which_it_holds_the_lock(
    made: Path, tmp_path: Path, stage: str
) -> None:
    (tmp_path / "corpus.txt").write_text("Anna sees the boat.\n\n" * 20)
    watching = Watching(tmp_path / "out")
    run, out = replace(CPU, reporter=watching), tmp_path / "out"
    if stage == "tokenize":
        settings = TokenizeSettings(vocab_size=270)
        tokenize([str(tmp_path / "corpus.txt")], out, settings, run=run, shard=(0, 2))
    else:
        encode(made / "tokens", made / "vae", out, EncodeSettings(), run, (0, 2))
    assert stage in watching.seen
    assert set(watching.seen.values()) == {"running (shards)"}
    assert survey(out)[0].state == "abandoned"


def test_a_damaged_manifest_is_listed(tmp_path: Path) -> None:
    make(tmp_path / "tokens")
    (tmp_path / "tokens/manifest.json").write_text("{")
    assert [state.state for state in survey(tmp_path)] == ["damaged"]
