"""The promises that every artifact keeps, whichever stage wrote it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cola_cli.artifacts import Artifact, Identity, Output
from cola_cli.artifacts.files import TEMPORARY, atomic_file, sha256_bytes, write_atomic
from cola_cli.artifacts.lock import writer_lock
from cola_cli.artifacts.manifest import FORMAT_VERSION, Manifest, read_manifest, write_manifest
from cola_cli.artifacts.verify import repair, verify
from cola_cli.errors import ColaError, DamagedArtifact, InputError, OutputConflict


def identity(**settings: object) -> Identity:
    return Identity(
        stage="tokenize",
        settings={"seq_len": 64, "train": {"steps": 3}} | settings,
        inputs={"corpus": sha256_bytes(b"corpus")},
    )


def make(path: Path, parts: int = 3, **settings: object) -> Artifact:
    output = Output.open(path, "tokens", identity(**settings))
    with output.writing() as writer:
        for index in range(parts):
            if index not in writer.parts:
                with writer.part(index, source=f"{index}.txt", suffix=".bin") as part:
                    part.path.write_bytes(bytes([index]) * 1000)
                    part.rows, part.tokens = 10, 640
        writer.write("tokenizer.json", b"{}")
        writer.finish({"documents": 3})
    return Artifact.open(path, "tokens")


# 1. atomic


def test_an_interrupted_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"old")

    def half_a_write() -> None:
        with atomic_file(target) as temporary:
            temporary.write_bytes(b"half of the ne")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        half_a_write()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_synced_before_and_its_directory_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        kind = "directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        calls.append(f"sync {kind}")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        calls.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "file", b"data")
    assert calls == ["sync file", "rename", "sync directory"]


WRITE_FOREVER = """
import sys
from pathlib import Path
from cola_cli.artifacts.files import write_atomic
step = 0
print("ready", flush=True)
while True:
    step += 1
    write_atomic(Path(sys.argv[1]), (b"%d\\n" % (step % 10)) * 100_000)
"""


def test_readers_never_see_half_a_file_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    target = tmp_path / "file"
    for attempt in range(5):
        command = [sys.executable, "-c", WRITE_FOREVER, str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if target.exists():
            lines = target.read_bytes().splitlines()
            assert len(lines) == 100_000
            assert len(set(lines)) == 1


def test_left_overs_of_a_killed_writer_are_removed_by_the_next_run(tmp_path: Path) -> None:
    directory = tmp_path / "tokens"
    with Output.open(directory, "tokens", identity()).writing():
        (directory / "parts").mkdir()
        (directory / "parts" / "00001.bin.tmp-4194305").write_bytes(b"half")
    make(directory)
    assert not [path for path in directory.rglob("*") if TEMPORARY.search(path.name)]
    assert verify(directory).findings == []


# 2. resumable


def test_a_run_interrupted_between_parts_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    output = Output.open(tmp_path / "resumed", "tokens", identity())
    with output.writing() as writer, writer.part(0, source="0.txt", suffix=".bin") as part:
        part.path.write_bytes(bytes([0]) * 1000)
        part.rows, part.tokens = 10, 640
    with pytest.raises(InputError, match="not finished"):
        Artifact.open(tmp_path / "resumed")
    resumed = make(tmp_path / "resumed")
    assert resumed.manifest.files == whole.manifest.files
    assert resumed.parts == whole.parts


def test_a_finished_part_is_not_made_again(tmp_path: Path) -> None:
    make(tmp_path / "tokens", parts=1)
    first = (tmp_path / "tokens/parts/00000.bin").stat().st_mtime_ns
    output = Output.open(tmp_path / "tokens", "tokens", identity())
    with output.writing() as writer:
        assert list(writer.parts) == [0]
    assert (tmp_path / "tokens/parts/00000.bin").stat().st_mtime_ns == first


def test_a_part_damaged_since_the_interruption_is_made_again(tmp_path: Path) -> None:
    output = Output.open(tmp_path / "tokens", "tokens", identity())
    with output.writing() as writer, writer.part(0, suffix=".bin") as part:
        part.path.write_bytes(b"content")
    (tmp_path / "tokens/parts/00000.bin").write_bytes(b"c0ntent")
    with output.writing() as writer:
        assert writer.parts == {}


# 3. idempotent


def test_a_finished_artifact_is_up_to_date(tmp_path: Path) -> None:
    make(tmp_path / "tokens")
    assert Output.open(tmp_path / "tokens", "tokens", identity()).up_to_date


def test_an_unfinished_artifact_is_not_up_to_date(tmp_path: Path) -> None:
    output = Output.open(tmp_path / "tokens", "tokens", identity())
    with output.writing():
        pass
    assert not Output.open(tmp_path / "tokens", "tokens", identity()).up_to_date


def test_a_missing_file_is_noticed_before_up_to_date_is_said(tmp_path: Path) -> None:
    make(tmp_path / "tokens")
    (tmp_path / "tokens/parts/00001.bin").unlink()
    with pytest.raises(DamagedArtifact, match=r"00001\.bin is missing"):
        _ = Output.open(tmp_path / "tokens", "tokens", identity()).up_to_date


# 4. content-addressed lineage


def test_other_settings_are_refused_with_old_and_new_value_and_nothing_is_touched(
    tmp_path: Path,
) -> None:
    make(tmp_path / "tokens")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputConflict) as caught:
        Output.open(tmp_path / "tokens", "tokens", identity(train={"steps": 4}))
    assert "train.steps: 3 -> 4" in caught.value.problem
    assert caught.value.exit_code == 3
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_changed_input_is_named(tmp_path: Path) -> None:
    make(tmp_path / "tokens")
    other = identity().model_copy(update={"inputs": {"corpus": sha256_bytes(b"other")}})
    with pytest.raises(OutputConflict, match=r"input corpus: .* -> "):
        Output.open(tmp_path / "tokens", "tokens", other)


def test_a_run_that_failed_before_it_made_anything_stands_in_nobodys_way(tmp_path: Path) -> None:
    with Output.open(tmp_path / "tokens", "tokens", identity()).writing():
        (tmp_path / "tokens/part.bin.tmp-4194305").write_bytes(b"half")
    assert make(tmp_path / "tokens", seq_len=128).manifest.identity.settings["seq_len"] == 128
    output = Output.open(tmp_path / "other", "tokens", identity())
    with output.writing() as writer, writer.part(0, suffix=".bin") as part:
        part.path.write_bytes(b"something finished")
    with pytest.raises(OutputConflict, match="seq_len: 64 -> 128"):
        make(tmp_path / "other", seq_len=128)


def test_overwrite_starts_afresh(tmp_path: Path) -> None:
    make(tmp_path / "tokens", parts=3)
    new = identity(seq_len=128)
    output = Output.open(tmp_path / "tokens", "tokens", new, overwrite=True)
    with output.writing() as writer:
        assert writer.parts == {}
        writer.finish()
    assert Artifact.open(tmp_path / "tokens").manifest.files == []


def test_settings_that_change_the_result_change_the_fingerprint_and_order_does_not() -> None:
    assert identity(seq_len=65).fingerprint != identity().fingerprint
    swapped = Identity(
        stage="tokenize",
        settings=dict(reversed(identity().settings.items())),
        inputs=identity().inputs,
    )
    assert swapped.fingerprint == identity().fingerprint


# 5. verifiable


def test_any_flipped_byte_of_any_file_is_found_and_the_file_named(tmp_path: Path) -> None:
    directory = tmp_path / "tokens"
    make(directory)
    files = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) == 3 + 3 + 2  # parts, their records, the tokenizer and the manifest
    for path in files:
        good = path.read_bytes()
        for position in {0, len(good) // 2, len(good) - 1}:
            for mask in (0x01, 0x07):  # 0x07 turns a newline into a carriage return
                bad = bytearray(good)
                bad[position] ^= mask
                path.write_bytes(bad)
                findings = verify(directory).findings
                name = path.relative_to(directory).as_posix()
                assert [finding.path for finding in findings] == [name]
        path.write_bytes(good)
    assert verify(directory).findings == []


def test_a_reader_refuses_a_damaged_part_and_names_it(tmp_path: Path) -> None:
    artifact = make(tmp_path / "tokens")
    part = tmp_path / "tokens/parts/00002.bin"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert artifact.part_file(1).exists()
    with pytest.raises(DamagedArtifact, match=r"00002\.bin is damaged"):
        artifact.part_file(2)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    make(tmp_path / "tokens")
    (tmp_path / "tokens/parts/00000.bin").unlink()
    (tmp_path / "tokens/parts/00009.bin").write_bytes(b"what")
    problems = {finding.path: finding.problem for finding in verify(tmp_path / "tokens").findings}
    assert "missing" in problems["parts/00000.bin"]
    assert "foreign" in problems["parts/00009.bin"]
    assert len(problems) == 2


def test_repair_drops_the_damage_and_the_next_run_makes_just_that_again(tmp_path: Path) -> None:
    whole = make(tmp_path / "tokens")
    kept = (tmp_path / "tokens/parts/00000.bin").stat().st_mtime_ns
    (tmp_path / "tokens/parts/00001.bin").write_bytes(b"bad")
    assert repair(tmp_path / "tokens") == ["parts/00001.bin"]
    mended = make(tmp_path / "tokens")
    assert mended.manifest.files == whole.manifest.files
    assert (tmp_path / "tokens/parts/00000.bin").stat().st_mtime_ns == kept


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.zst"])
def test_after_a_repair_nothing_is_damaged(tmp_path: Path, suffix: str) -> None:
    with Output.open(tmp_path / "t", "tokens", identity()).writing() as writer:
        for index in range(3):
            with writer.part(index, suffix=suffix) as part:
                part.path.write_bytes(b"content")
        writer.finish()
    for index in (0, 1):  # in a finished artifact, then in the unfinished one that repair leaves
        (tmp_path / f"t/parts/0000{index}{suffix}").write_bytes(b"c0ntent")
        assert repair(tmp_path / "t") == [f"parts/0000{index}{suffix}"]
        assert verify(tmp_path / "t").findings == []
        assert not list((tmp_path / "t/parts").glob(f"0000{index}*"))


def test_repair_of_the_metrics_takes_the_checkpoints_that_go_on_with_them(tmp_path: Path) -> None:
    saved = tmp_path / "t/checkpoints/step-00000004"
    with Output.open(tmp_path / "t", "vae", identity()).writing() as writer:
        writer.write("metrics.parquet", b"numbers")
        writer.write("vae/model.safetensors", b"weights")
        writer.keep("metrics.parquet", "vae/model.safetensors")
        saved.mkdir(parents=True)
        (saved / "COMMITTED.json").write_text("{}")
    (tmp_path / "t/vae/model.safetensors").write_bytes(b"we1ghts")
    assert repair(tmp_path / "t") == ["vae/model.safetensors"]
    assert saved.exists()  # the weights are in it
    (tmp_path / "t/metrics.parquet").write_bytes(b"f1gures")
    assert repair(tmp_path / "t") == ["metrics.parquet"]
    assert not saved.exists()


def test_repair_leaves_foreign_files_and_the_next_run_does_not_claim_them(tmp_path: Path) -> None:
    whole = make(tmp_path / "tokens")
    for name in ("notes.txt", "parts/notes.txt"):
        (tmp_path / "tokens" / name).write_text("mine")
    assert repair(tmp_path / "tokens") == []
    (tmp_path / "tokens/parts/00001.bin").unlink()
    assert repair(tmp_path / "tokens") == ["parts/00001.bin"]
    mended = make(tmp_path / "tokens")
    assert mended.manifest.files == whole.manifest.files
    assert (tmp_path / "tokens/notes.txt").read_text() == "mine"
    assert (tmp_path / "tokens/parts/notes.txt").read_text() == "mine"


def test_a_file_that_is_being_made_anew_is_not_damaged(tmp_path: Path) -> None:
    with Output.open(tmp_path / "t", "tokens", identity()).writing() as writer:
        writer.write("a.json", b"one")
        writer.write("b.json", b"two")
        writer.keep("a.json", "b.json")
    with Output.open(tmp_path / "t", "tokens", identity()).writing() as writer:
        writer.discard("a.json", "c.json")
        (tmp_path / "t/a.json").write_bytes(b"o")  # as far as it has come
    assert verify(tmp_path / "t").findings == []
    with Output.open(tmp_path / "t", "tokens", identity()).writing() as writer:
        assert set(writer.kept) == {"b.json"}


def test_files_kept_by_an_interrupted_run_are_kept_unless_they_are_damaged(tmp_path: Path) -> None:
    def begin() -> set[str]:
        with Output.open(tmp_path / "t", "tokens", identity()).writing() as writer:
            kept = set(writer.kept)
            writer.write("a.json", b"one")
            writer.write("b.json", b"two")
            writer.keep("a.json", "b.json")
        return kept

    assert begin() == set()
    assert begin() == {"a.json", "b.json"}
    (tmp_path / "t/a.json").write_bytes(b"onE")
    assert [f.path for f in verify(tmp_path / "t").findings] == ["a.json"]
    assert begin() == {"b.json"}


def test_a_flipped_bit_in_the_record_of_an_unfinished_part_is_noticed(tmp_path: Path) -> None:
    with (
        Output.open(tmp_path / "t", "tokens", identity()).writing() as writer,
        writer.part(0) as part,
    ):
        part.path.write_bytes(b"data")
        part.statistics = {"sum": 1.25}
    record = tmp_path / "t/parts/00000.json"
    record.write_text(record.read_text().replace("1.25", "1.75"))
    assert [f.path for f in verify(tmp_path / "t").findings] == ["parts/00000.json"]
    with Output.open(tmp_path / "t", "tokens", identity()).writing() as writer:
        assert not writer.parts


# 6. one writer


def _hold_lock(directory: Path, held: object, release: object) -> None:
    with writer_lock(directory):
        held.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_a_second_writer_stops_at_once_and_names_the_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold_lock, args=(tmp_path / "tokens", held, release))
    process.start()
    assert held.wait(30)
    with pytest.raises(OutputConflict, match=f"process {process.pid} on") as caught:
        make(tmp_path / "tokens")
    assert caught.value.exit_code == 3
    process.kill()  # the lock of a dead process does not block
    process.join()
    make(tmp_path / "tokens")


# 7. safe to open


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "./a", "a//b", "a\\b", ""])
def test_a_path_that_leaves_the_artifact_is_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path / "tokens")
    manifest = read_manifest(tmp_path / "tokens")
    record = manifest.files[0].model_copy(update={"path": name})
    write_manifest(tmp_path / "tokens", manifest.model_copy(update={"files": [record]}))
    with pytest.raises(DamagedArtifact, match="manifest"):
        Artifact.open(tmp_path / "tokens")


def test_a_link_out_of_the_artifact_is_refused(tmp_path: Path) -> None:
    artifact = make(tmp_path / "tokens")
    outside = tmp_path / "outside"
    outside.write_bytes(b"{}")
    (tmp_path / "tokens/tokenizer.json").unlink()
    (tmp_path / "tokens/tokenizer.json").symlink_to(outside)
    with pytest.raises(DamagedArtifact, match="link that leaves"):
        artifact.file("tokenizer.json")


# 8. versioned


def test_a_newer_format_is_refused_with_a_clear_message(tmp_path: Path) -> None:
    make(tmp_path / "tokens")
    path = tmp_path / "tokens/manifest.json"
    document = json.loads(path.read_text())
    document["format_version"] = FORMAT_VERSION + 1
    document["something_new"] = True
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"format version {FORMAT_VERSION + 1}") as caught:
        Artifact.open(tmp_path / "tokens")
    assert "newer cola" in caught.value.remedy


def test_the_manifest_has_a_json_schema() -> None:
    schema = Manifest.model_json_schema()
    assert {"format_version", "identity", "fingerprint", "files"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


# where it may write


def test_a_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("mine")
    with pytest.raises(OutputConflict, match="is a file"):
        make(tmp_path / "tokens")


def test_a_directory_of_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/thesis.tex").write_text("mine")
    with pytest.raises(OutputConflict, match=r"not empty .*thesis\.tex"):
        make(tmp_path / "tokens")
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_said_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ColaError, match="disk is full"):
        write_atomic(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


FULL_WHILE_SAVING = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from cola_cli.artifacts.files import atomic_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with atomic_file(Path(sys.argv[1])) as temporary:
    save_file({"weights": np.zeros(1000)}, temporary)
"""


def test_a_failure_inside_the_library_that_writes_weights_is_said_like_any_other(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", FULL_WHILE_SAVING, str(tmp_path / "model.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "ColaError: writing" in result.stderr
    assert "model.safetensors failed (File too large)" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_may_be_read_by_whom_the_users_umask_lets_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    write_atomic(tmp_path / "plain", b"data")
    with atomic_file(tmp_path / "weights") as temporary:
        save_file({"weights": np.zeros(3)}, temporary)
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "x"}', "\x00", '{"a":' * 5000])
def test_a_manifest_that_is_none_is_a_damaged_artifact(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedArtifact, match=r"manifest\.json"):
        Artifact.open(tmp_path)


def test_a_part_of_another_artifact_is_found_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    for wanted in (identity(), identity(seq_len=128)):
        output = Output.open(path / wanted.fingerprint[:4], "tokens", wanted)
        with output.writing() as writer:
            for index in range(2):
                with writer.part(index, suffix=".bin") as part:
                    part.path.write_bytes(wanted.fingerprint.encode())
            writer.finish()
    own, other = (path / one.fingerprint[:4] for one in (identity(), identity(seq_len=128)))
    assert verify(own).findings == []
    assert verify(other).findings == []
    manifest = read_manifest(own)
    write_manifest(own, manifest.model_copy(update={"status": "incomplete", "files": []}))
    for file in (other / "parts").glob("00001.*"):
        (own / "parts" / file.name).write_bytes(file.read_bytes())
    assert [finding.path for finding in verify(own).findings] == ["parts/00001.json"]
    with Output.open(own, "tokens", identity()).writing() as writer:
        assert list(writer.parts) == [0]
