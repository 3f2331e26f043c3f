"""Re-read every byte of an artifact and name each damaged, missing or foreign file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cola_cli.artifacts import mirror
from cola_cli.artifacts.artifact import METRICS
from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS, remove_all
from cola_cli.artifacts.checks import check_file, content_files
from cola_cli.artifacts.files import is_being_written, remove_file, remove_temporaries, sync
from cola_cli.artifacts.lock import writer_lock
from cola_cli.artifacts.manifest import (
    MANIFEST_NAME,
    NEW,
    FileRecord,
    Manifest,
    read_manifest,
    write_manifest,
)
from cola_cli.artifacts.parts import PARTS, belongs, read_part_record
from cola_cli.errors import DamagedArtifact, InputError


@dataclass(frozen=True)
class Finding:
    """One thing wrong with an artifact; `path` is relative to it."""

    path: str
    problem: str
    foreign: bool = False  # not of the artifact at all


@dataclass(frozen=True)
class Verification:
    """The result of verifying one artifact."""

    directory: Path
    status: str
    files: int
    bytes: int
    findings: list[Finding]


def verify(directory: Path, advance: Callable[[int], None] = lambda count: None) -> Verification:
    """Check every file of the artifact at `directory` against its digest; nothing is changed.

    An unfinished artifact is checked as far as its part records go. `advance` is told the bytes read.
    """
    mirror.pull(directory, listed=True)
    try:
        manifest = read_manifest(directory)
    except DamagedArtifact as error:
        return Verification(directory, "damaged", 0, 0, [Finding("manifest.json", error.problem)])
    findings: list[Finding] = []
    promised, strangers = _parts(directory, manifest, findings)
    records = manifest.files if manifest.status == "complete" else [*manifest.files, *promised]
    for record in records:
        try:
            mirror.fetch(directory / record.path, again=True)
            check_file(directory, record)
        except DamagedArtifact as error:
            findings.append(Finding(record.path, error.problem))
        advance(record.bytes)
    damaged = {finding.path for finding in findings}
    findings += [stranger for stranger in strangers if stranger.path not in damaged]
    if manifest.status == "complete":
        known = {record.path for record in records}
        for path in sorted(content_files(directory)):
            name = path.relative_to(directory).as_posix()
            if name not in known and not is_being_written(path):
                problem = f"{path} is foreign: the manifest does not list it."
                findings.append(Finding(name, problem, foreign=True))
    size = sum(record.bytes for record in records)
    return Verification(directory, manifest.status, len(records), size, findings)


def repair(directory: Path) -> list[str]:
    """Drop damaged and missing files from an artifact, so that the next run makes only these again.

    Returns the relative names of the dropped files; the artifact is unfinished then, unless they are of the
    state from which `--extend` goes on: a model is whole without it. Foreign files are left where they are:
    they may be the only copy. Raises DamagedArtifact when the manifest itself cannot be read: then only a
    fresh run helps.
    """
    manifest = read_manifest(directory)
    with writer_lock(directory):
        remove_temporaries(directory)
        findings = [finding for finding in verify(directory).findings if not finding.foreign]
        if not findings:
            return []
        own = {record.path for record in manifest.files}
        damaged = {finding.path for finding in findings}
        # checkpoints continue the metrics, and a damaged one is useless
        if METRICS in damaged or any(name.startswith(f"{CHECKPOINTS}/") for name in damaged):
            remove_all(directory / CHECKPOINTS)
            damaged |= {name for name in own if name.startswith(f"{CHECKPOINTS}/")}
        if own & damaged:
            kept = [record for record in manifest.files if record.path not in damaged]
            status = manifest.status
            if not all(name.startswith(f"{CHECKPOINTS}/") for name in damaged):
                status = "incomplete"  # parts have records of their own
                kept = [record for record in kept if not record.path.startswith(f"{PARTS}/")]
            write_manifest(directory, manifest.model_copy(update={"status": status, "files": kept}))
        for finding in findings:
            _drop(directory, finding.path)
        sync(directory)
    return [finding.path for finding in findings]


def find_artifacts(path: Path) -> list[Path]:
    """The artifact directories at or below `path`, in order of name."""
    if not path.is_dir():
        raise InputError(f"{path} is not a directory.", "Name an artifact or a directory of them.")
    places = {manifest.parent for manifest in path.rglob(MANIFEST_NAME)}
    found = sorted(place for place in places if place.name != NEW)
    if not found:
        raise InputError(
            f"{path} holds no artifact.",
            "Name a directory that a cola stage wrote, or one above it.",
        )
    return found


def _parts(
    directory: Path, manifest: Manifest, findings: list[Finding]
) -> tuple[list[FileRecord], list[Finding]]:
    """The files that part records promise, and records that were made for another artifact."""
    promised, strangers = [], []
    for path in sorted((directory / PARTS).glob("*.json")):
        name = path.relative_to(directory).as_posix()
        try:
            part = read_part_record(path)
        except DamagedArtifact as error:
            if manifest.status == "incomplete":  # else the manifest has the digest of this file
                findings.append(Finding(name, error.problem))
            continue
        promised.append(part.data)
        if not belongs(part, manifest.fingerprint):
            problem = f"{path} records a part made from other inputs or with other settings."
            strangers.append(Finding(name, problem))
    return promised, strangers


def _drop(directory: Path, name: str) -> None:
    """Remove a file and, for a data part, its partner: the part exists only while both do."""
    path = directory / name
    remove_file(path)
    if path.parent.name == PARTS:
        number = path.name.partition(".")[0]  # 00000 of 00000.json and 00000.jsonl.zst
        for partner in path.parent.glob(f"{number}.*"):
            remove_file(partner)
