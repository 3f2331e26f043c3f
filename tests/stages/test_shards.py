"""Several processes that make parts of one artifact never mix what has other settings or inputs."""

from __future__ import annotations

import json
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

from cola_cli.artifacts import Identity, Output, parts
from cola_cli.artifacts.lock import writer_lock
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.artifacts.parts import write_part
from cola_cli.artifacts.verify import verify
from cola_cli.errors import OutputConflict, UsageError
from cola_cli.machine.launcher import INDEXED
from cola_cli.stages.shards import WHOLE, begin_together, parse_shard
from cola_cli.weights.names import demo_model
from tests.conftest import Run, cola_command, content


def identity(number: int) -> Identity:
    """Of a made-up stage."""
    return Identity(stage="encode", settings={"number": number}, inputs={})


def place(path: Path, number: int) -> Output:
    """Where a shard of that stage writes."""
    return Output.open(path, "latents", identity(number))


def begin(output: Output) -> None:
    """Begin as a shard of `cola encode` does."""
    begin_together(output, {})


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


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_holder_that_is_stopped_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    path = tmp_path / "a"
    monkeypatch.setattr(parts, "STOPPED_SECONDS", 60.0 if goes_on else 1.0)
    begin(place(path, 1))
    code = "import sys, pathlib, cola_cli.artifacts.lock as lock\n"
    code += "with lock.writer_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        if goes_on:
            assert holder.stdin is not None
            threading.Timer(2.0, holder.send_signal, (signal.SIGCONT,)).start()
            threading.Timer(2.0, holder.stdin.close).start()
            add(path, 0, 1)
        else:
            with pytest.raises(OutputConflict, match="which is stopped"):
                add(path, 0, 1)
            holder.kill()
    assert [*content(path)] == (["parts/00000.json", "parts/00000.txt"] if goes_on else [])


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


SLURM, INDEX, RANK = INDEXED


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({SLURM: "2", INDEXED[SLURM]: "4"}, (2, 4)),
        ({SLURM: "8", INDEXED[SLURM]: "3", "SLURM_ARRAY_TASK_MIN": "5"}, "without gaps"),
        ({SLURM: "7", INDEXED[SLURM]: "3", "SLURM_ARRAY_TASK_MIN": "5"}, (2, 3)),
        (
            {
                SLURM: "20",
                INDEXED[SLURM]: "4",
                "SLURM_ARRAY_TASK_MIN": "5",
                "SLURM_ARRAY_TASK_STEP": "5",
            },
            (3, 4),
        ),
        ({SLURM: "2"}, "SLURM_ARRAY_TASK_COUNT is not set"),
        ({INDEX: "0", "COLA_SHARDS": "8"}, (0, 8)),
        ({INDEX: "0"}, "variable COLA_SHARDS is not set"),
        ({"COLA_SHARDS": "8"}, "variable JOB_COMPLETION_INDEX is not set"),
        ({INDEX: "8", "COLA_SHARDS": "8"}, "JOB_COMPLETION_INDEX=8, COLA_SHARDS=8"),
        ({INDEX: "one", "COLA_SHARDS": "8"}, "'one' is not a number"),
        ({RANK: "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({RANK: "1", "WORLD_SIZE": ""}, "WORLD_SIZE is empty"),
        ({RANK: "1", "WORLD_SIZE": "2", SLURM: "0", INDEXED[SLURM]: "1"}, "which of"),
        ({}, "SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX or RANK is not set"),
    ],
)
def test_auto_is_what_the_launcher_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: tuple[int, int] | str
) -> None:
    for name in (*INDEXED, *INDEXED.values(), "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert parse_shard(None) == WHOLE
    if isinstance(expected, tuple):
        assert parse_shard("auto") == expected
    else:
        with pytest.raises(UsageError, match=expected) as raised:
            parse_shard("auto")
        assert "--shard I/N" in raised.value.remedy


@pytest.mark.parametrize("stage", ["sample", "eval", "likelihood"])
def test_answers_made_in_shards_are_those_of_one_run(cola: Run, tmp_path: Path, stage: str) -> None:
    rows = [
        {"id": n, "prompt": f"Tom was {n}", "ground_truth": "old", "choices": []} for n in range(10)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--set", "items_per_part=2", "--set", "steps=2"]
    words = {
        "sample": ("sample", "--prompts", "p.jsonl"),
        "eval": ("eval", "run", "--task", "lambada", "--prompts", "p.jsonl"),
        "likelihood": ("likelihood", "--file", "p.jsonl", "--text-field", "prompt"),
    }[stage]
    if stage != "likelihood":
        sizes += ["--set", "max_new_tokens=4"]
    command = (*words, demo_model(), *sizes, "--device", "cpu", "--quiet")
    cola(*command, "-o", "whole")
    auto = {"COLA_SHARD": "auto", "COLA_SHARDS": "3"}
    for index in (2, 0):
        variables = os.environ | auto | {INDEX: str(index)}
        said = cola(*command, "-o", "out", env=variables).stdout
    assert said == "out: 3 parts done; other processes make the rest\n"
    names = [path.name for path in sorted(tmp_path.glob("out/parts/*.json"))]
    assert names == ["00000.json", "00002.json", "00003.json"]
    watching = subprocess.Popen(
        cola_command("status", "out", "--watch"), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    cola(*command, "-o", "out")
    seen = watching.communicate()[0].splitlines()
    assert "complete" in seen[-1]
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    if stage != "eval":
        assert "Give" in cola(*command, "--shard", "0/2", expect=2).stderr


MAKING = """
import sys
from pathlib import Path
from tests.stages.test_shards import identity, write_part
with write_part(Path(sys.argv[1]), 0, identity(1), suffix=".txt", shared=True) as part:
    part.path.write_text("1")
    print(part.path.name, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_live_process_is_writing_is_left_alone(tmp_path: Path, killed: bool) -> None:
    path, pipe = tmp_path / "a", subprocess.PIPE
    begin(place(path, 1))
    command = [sys.executable, "-c", MAKING, str(path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        temporary = path / "parts" / other.stdout.readline().strip()
        with place(path, 1).writing():
            assert temporary.read_text() == "1"
        if killed:
            other.kill()
        else:
            other.communicate("")
    with place(path, 1).writing() as writer:
        assert list(writer.parts) == ([] if killed else [0])
        assert not temporary.exists()


def test_a_temporary_file_of_another_machine_is_removed_a_day_after_its_last_byte(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a"
    begin(place(path, 1))
    (path / "parts").mkdir()
    files = [path / "parts" / f"0000{n}.txt.tmp-{os.getpid()}@0123abcd" for n in range(2)]
    for file, hours in zip(files, (23, 25), strict=True):
        file.write_text("half")
        os.utime(file, (time.time() - 3600 * hours,) * 2)
    with place(path, 1).writing() as writer:
        writer.finish({})
    assert [file.exists() for file in files] == [True, False]
    assert not verify(path).findings


def cola_process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
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
        cola_process(*common, "--vae", vae, "--shard", f"{number}/2")
        for number, vae in enumerate((made / "vae", other))
    ]
    told = [shard.communicate()[1] for shard in shards]
    codes = [shard.returncode for shard in shards]
    assert sorted(codes) == [0, 3], told
    winner = (made / "vae", other)[codes.index(0)]
    merged = cola_process(*common, "--vae", winner)
    merged.communicate()
    assert merged.returncode == 0
    assert read_manifest(latents).identity.inputs["vae"] == read_manifest(winner).fingerprint
