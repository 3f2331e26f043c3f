"""--overwrite: the old artifact goes when the new one is whole, foreign files stay, kills harm none."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cola_cli.artifacts import Artifact, Output
from cola_cli.artifacts.files import TEMPORARY, sync
from cola_cli.artifacts.manifest import NEW, read_manifest
from cola_cli.artifacts.verify import find_artifacts, verify
from cola_cli.errors import ColaError, OutputConflict
from cola_cli.stages.run import up_to_date
from tests.artifacts.test_promises import identity, make


def overwrite(path: Path, parts: int = 2, **settings: object) -> None:
    output = Output.open(path, "tokens", identity(**settings), overwrite=True)
    with output.writing() as writer:
        for index in range(parts):
            if index not in writer.parts:
                with writer.part(index, suffix=".bin") as part:
                    part.path.write_bytes(bytes([100 + index]) * 500)
        writer.write("vae/config.json", b"{}")
        writer.finish({"documents": 2})


def content(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


class Killed(BaseException):
    pass


CHANGES: tuple[tuple[Any, str], ...] = (
    (os, "replace"), (Path, "unlink"), (Path, "rmdir"), (Path, "mkdir"),
)  # fmt: skip


def killing(
    monkeypatch: pytest.MonkeyPatch, after: int, changes_of: Sequence[tuple[Any, str]] = CHANGES
) -> None:
    """Every change of a directory from the `after`-th on fails as it would in a process that is gone."""
    changes = 0

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes > after:
                raise Killed
            return change(*arguments, **options)

        return called

    for owner, name in changes_of:
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


def test_a_kill_at_any_change_leaves_the_old_artifact_or_the_way_to_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "quiet/tokens", parts=3)
    old = content(tmp_path / "quiet/tokens")
    shutil.copytree(tmp_path / "quiet", tmp_path / "wanted")
    overwrite(tmp_path / "wanted/tokens", seq_len=128)
    wanted = content(tmp_path / "wanted/tokens")
    wanted.pop("manifest.json")  # it holds the seconds
    ended = False
    after = 0
    while not ended:
        path = tmp_path / f"at{after}/tokens"
        shutil.copytree(tmp_path / "quiet/tokens", path)
        (path / "NOTES.txt").write_text("mine")
        with monkeypatch.context() as patch:
            killing(patch, after, (*CHANGES, (shutil, "rmtree")))
            try:
                overwrite(path, seq_len=128)
                ended = True
            except Killed:
                pass
        manifest = read_manifest(path)
        assert find_artifacts(tmp_path / f"at{after}") == [path]
        if manifest.fingerprint == identity().fingerprint:  # not begun to go: every byte is there
            assert old.items() <= content(path).items()
            assert Output.open(path, "tokens", identity()).up_to_date
            found = {finding.path for finding in verify(path).findings}
            assert {name for name in found if not TEMPORARY.search(name)} == {"NOTES.txt"}
        elif (
            manifest.status == "incomplete"
        ):  # the same command ends it, with --overwrite or without
            with pytest.raises(OutputConflict):
                Output.open(path, "tokens", identity(seq_len=7))
            with Output.open(path, "tokens", identity(seq_len=128)).writing() as writer:
                assert len(writer.parts) == 2
                writer.finish()
        elif (path / NEW).exists():  # only its last traces, which any run of the stage removes
            done = Output.open(path, "tokens", identity(seq_len=128))
            assert done.up_to_date
            assert not up_to_date(done).changed
            assert not (path / NEW).exists()
        overwrite(path, seq_len=128)
        found = content(path)
        assert found.pop("NOTES.txt") == b"mine"
        assert found.pop("manifest.json")
        assert found == wanted
        assert not (path / NEW).exists()
        Artifact.open(path)
        after += 1
    assert after > 20


def failing(monkeypatch: pytest.MonkeyPatch, at: int) -> list[set[str]]:
    """The `at`-th change of a directory is an error of the disk; then the paths it may be known by."""
    changes, failed = 0, []

    def of(change: Callable[..., Any]) -> Callable[..., Any]:
        def called(*paths: Any, **options: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == at:
                names = [os.fspath(path) for path in paths]
                failed.append({TEMPORARY.sub("", name) for name in names})
                raise OSError(errno.EIO, os.strerror(errno.EIO), names[0], None, *names[1:])
            return change(*paths, **options)

        return called

    for name in ("unlink", "rmdir", "replace"):
        monkeypatch.setattr(os, name, of(getattr(os, name)))
    return failed


def test_an_error_of_the_disk_at_any_change_names_the_file_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Output.open(tmp_path / "old", "tokens", identity()).writing() as writer:
        writer.write("network/config.json", b"{}")
        writer.finish()
    shutil.copytree(tmp_path / "old", tmp_path / "wanted")
    overwrite(tmp_path / "wanted", seq_len=128)
    for at in range(1, 100):
        path = tmp_path / f"at{at}"
        shutil.copytree(tmp_path / "old", path)
        with monkeypatch.context() as patch:
            failed, said = failing(patch, at), ""
            try:
                overwrite(path, seq_len=128)
            except ColaError as error:
                said = error.problem
        assert not said or any(name in said for name in failed[0]), said
        if not failed:
            break
        overwrite(path, seq_len=128)
        assert {p.relative_to(path) for p in path.rglob("*")} == {
            p.relative_to(tmp_path / "wanted") for p in (tmp_path / "wanted").rglob("*")
        }
    assert at > 20


def test_an_error_of_fsync_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=str(tmp_path)):
        sync(tmp_path)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    make(tmp_path / "tokens")
    before = content(tmp_path / "tokens")
    new = identity(seq_len=128)
    output = Output.open(tmp_path / "tokens", "tokens", new, overwrite=True)
    with contextlib.suppress(Killed), output.writing({"threads": 3}) as writer:
        with writer.part(0, suffix=".bin") as part:
            part.path.write_bytes(b"done")
        raise Killed
    assert before.items() <= content(tmp_path / "tokens").items()
    again = Output.open(tmp_path / "tokens", "tokens", new, overwrite=True)
    assert again.recorded_environment == {"threads": 3}
    with again.writing() as writer:
        assert list(writer.parts) == [0]
        writer.finish()
    # another command does not go on with it
    again = Output.open(tmp_path / "tokens", "tokens", new, overwrite=True)
    with contextlib.suppress(Killed), again.writing() as writer:
        writer.write("notes", b"n")
        raise Killed
    other = Output.open(tmp_path / "tokens", "tokens", identity(seq_len=256), overwrite=True)
    with other.writing() as writer:
        assert not (writer.path / "notes").exists()
        writer.finish()
    assert content(tmp_path / "tokens").keys() == {"manifest.json"}


def test_what_a_power_cut_left_beside_the_moved_artifact_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    overwrite(path, seq_len=128)
    before = content(path)
    shutil.copytree(path, tmp_path / "copy")
    shutil.copytree(tmp_path / "copy", path / NEW)
    (path / NEW / "replaced.json").write_text("[]\n")
    assert not up_to_date(Output.open(path, "tokens", identity(seq_len=128))).changed
    assert content(path) == before


def test_what_another_process_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    make(path)
    late = Output.open(path, "tokens", identity(seq_len=128), overwrite=True)
    overwrite(path, seq_len=128)
    before = content(path)
    with pytest.raises(OutputConflict, match="changed by another process"), late.writing():
        pass
    assert content(path) == before


def test_a_run_that_fails_at_once_leaves_no_trace(tmp_path: Path) -> None:
    make(tmp_path / "tokens")
    before = content(tmp_path / "tokens")
    output = Output.open(tmp_path / "tokens", "tokens", identity(seq_len=1), overwrite=True)
    with pytest.raises(ValueError, match="no such field"), output.writing():
        raise ValueError("no such field")
    assert content(tmp_path / "tokens") == before


def test_foreign_files_stay_and_are_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    make(path)
    (path / "parts/mine.txt").write_text("mine")
    make(path / "nested")
    nested = content(path / "nested")
    overwrite(path, seq_len=128)
    assert (path / "parts/mine.txt").read_text() == "mine"
    assert content(path / "nested") == nested
    make(tmp_path / "other")
    (tmp_path / "other/vae").mkdir()
    (tmp_path / "other/vae/config.json").write_text("mine")
    before = content(tmp_path / "other")
    for _ in range(2):
        with pytest.raises(OutputConflict, match=r"vae/config.json is in the way"):
            overwrite(tmp_path / "other", seq_len=128)
        assert before.items() <= content(tmp_path / "other").items()
    (tmp_path / "other/vae/config.json").rename(tmp_path / "kept.json")
    overwrite(tmp_path / "other", seq_len=128)
    assert verify(tmp_path / "other").findings == []


def test_an_unfinished_artifact_is_replaced_with_what_it_left(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    with contextlib.suppress(Killed), Output.open(path, "tokens", identity()).writing() as writer:
        for index in range(4):
            with writer.part(index, suffix=".bin") as part:
                part.path.write_bytes(b"old")
        (path / "checkpoints/step-00000004").mkdir(parents=True)
        (path / "checkpoints/step-00000004/COMMITTED.json").write_text("{}")
        raise Killed
    overwrite(path, seq_len=128)
    assert verify(path).findings == []
    assert not (path / "checkpoints").exists()
