"""Several processes that make parts of one artifact never mix what has other settings or inputs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cola_cli.artifacts import Identity, Output
from cola_cli.artifacts.lock import writer_lock
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.artifacts.parts import write_part
from cola_cli.errors import OutputConflict
from cola_cli.stages.shards import begin_together
from tests.conftest import content


def identity(number: int) -> Identity:
    """Of a made-up stage."""
    return Identity(stage="encode", settings={"number": number}, inputs={})


def place(path: Path, number: int) -> Output:
    """Where a shard of that stage writes."""
    return Output.open(path, "latents", identity(number))


def begin(output: Output) -> None:
    """Begin as a shard of `cola encode` does."""
    begin_together(output, {}, output.path / "manifest.json")


def add(path: Path, index: int, number: int) -> None:
    """Add a part as a shard does."""
    with write_part(path, index, identity(number), suffix=".txt", shared=True) as part:
        part.path.write_text(f"{number}")


def test_of_shards_with_different_inputs_one_is_refused(tmp_path: Path) -> None:
    first, second = place(tmp_path / "a", 1), place(tmp_path / "a", 2)
    begin(first)
    begin(second)  # nothing of the first is there yet
    with pytest.raises(OutputConflict, match="number: 2 -> 1"):
        add(tmp_path / "a", 0, 1)
    add(tmp_path / "a", 1, 2)
    with pytest.raises(OutputConflict, match="number: 2 -> 1"):
        place(tmp_path / "a", 1)
    assert [*content(tmp_path / "a")] == ["parts/00001.json", "parts/00001.txt"]


def test_a_stale_empty_manifest_is_replaced(tmp_path: Path) -> None:
    with place(tmp_path / "a", 1).writing():
        pass
    second = place(tmp_path / "a", 2)
    begin(second)
    assert read_manifest(tmp_path / "a").identity == identity(2)


def test_a_conflict_that_will_not_pass_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").symlink_to(tmp_path / "elsewhere")
    begun = time.monotonic()
    with pytest.raises(OutputConflict):
        begin(place(tmp_path / "a", 1))
    (tmp_path / "b").mkdir()
    other = place(tmp_path / "b", 2)
    with other.writing():
        mine = Output(tmp_path / "b", "latents", identity(1), {}, False)
        with pytest.raises(OutputConflict, match="is being written by process"):
            begin(mine)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("holds", [True, False])
def test_a_holder_that_is_stopped_is_not_waited_for(tmp_path: Path, holds: bool) -> None:
    path = tmp_path / "a"
    begin(place(path, 1))
    code = "import sys, pathlib, cola_cli.artifacts.lock as lock\n"
    code += "with lock.writer_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        if holds:
            holder.send_signal(signal.SIGSTOP)
            with pytest.raises(OutputConflict, match="which is stopped"):
                add(path, 0, 1)
        holder.kill()
    add(path, 0, 1)


def test_a_directory_where_the_lock_belongs_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "a" / ".lock").mkdir(parents=True)
    with pytest.raises(OutputConflict, match="is a directory where the lock belongs"):
        begin(place(tmp_path / "a", 1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputConflict):
        begin(place(tmp_path / "closed" / "a", 1))


def test_a_part_waits_for_the_lock_and_is_left_out_of_a_finished_artifact(tmp_path: Path) -> None:
    path = tmp_path / "a"
    begin(place(path, 1))
    with writer_lock(path):
        adding = threading.Thread(target=add, args=(path, 0, 1))
        adding.start()
        time.sleep(0.3)
        assert not list(path.glob("parts/*.txt"))
    adding.join(10)
    with place(path, 1).writing() as writer:
        writer.finish({})
    before = content(path)
    add(path, 0, 1)
    add(path, 1, 1)
    assert content(path) == before


def cola(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A `cola` process."""
    command = [sys.executable, "-m", "cola_cli", *map(str, arguments), "--quiet"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
def test_two_shards_with_different_vaes_started_together_do_not_mix(
    made: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(made / "vae", tmp_path / "other"))
    manifest = (other / "manifest.json").read_text()
    from cola_cli.artifacts.manifest import write_manifest

    changed = read_manifest(other)
    settings = changed.identity.settings | {"another": True}
    fresh = changed.identity.model_copy(update={"settings": settings})
    update = {"identity": fresh, "fingerprint": fresh.fingerprint}
    write_manifest(other, changed.model_copy(update=update))
    assert (other / "manifest.json").read_text() != manifest
    latents = tmp_path / "latents"
    common = ["encode", made / "tokens", "-o", latents, "--device", "cpu"]
    shards = [
        cola(*common, "--vae", vae, "--shard", f"{number}/2")
        for number, vae in enumerate((made / "vae", other))
    ]
    told = [shard.communicate()[1] for shard in shards]
    codes = [shard.returncode for shard in shards]
    assert sorted(codes) == [0, 3], told
    winner = (made / "vae", other)[codes.index(0)]
    merged = cola(*common, "--vae", winner)
    merged.communicate()
    assert merged.returncode == 0
    assert read_manifest(latents).identity.inputs["vae"] == read_manifest(winner).fingerprint
