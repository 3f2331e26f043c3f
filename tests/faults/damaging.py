"""Bytes that change, files that go or come, and settings and inputs that are others than before."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.faults.cases import CONFLICT, DAMAGED, DONE, Case, Trial, Verdict
from tests.faults.points import Point
from tests.faults.processes import run, run_with_fault
from tests.faults.stages import FOLDER, Stages, snapshot

READERS = {
    "tokenize": ("train vae", "encode", "train ar"),
    "train vae": ("encode",),
    "encode": ("train prior", "train prior, joint"),
    "train prior": ("sample",),
    "sample": (),
}
OTHER_SETTINGS: dict[str, dict[str, object]] = {
    "tokenize": {"seed": 5},
    "train vae": {"seed": 5},
    "encode": {"compression_level": 2},
    "train prior": {"seed": 5},
    "sample": {"seed": 5},
}
OTHER_INPUTS = {
    "tokenize": "corpus", "train vae": "tokens", "encode": "vae", "train prior": "latents",
    "sample": "prompts",
}  # fmt: skip


def flip(path: Path, place: float) -> None:
    """Change one bit of the byte at the given share of the file."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << int(place * 1e6) % 8
    path.write_bytes(data)


def truncate(path: Path, place: float) -> None:
    """Cut the file there."""
    path.write_bytes(path.read_bytes()[: int(place * path.stat().st_size)])


def remove(path: Path, place: float) -> None:
    """Remove the file."""
    path.unlink()


HARMS: dict[str, Callable[[Path, float], None]] = {
    "flipped": flip,
    "truncated": truncate,
    "removed": remove,
}


def files_of(folder: Path) -> list[str]:
    """Names of the files of an artifact but its lock."""
    return sorted(name for name, data in snapshot(folder).items() if data is not None)


def finished(stages: Stages, stage: str, seed: int) -> Iterator[Case]:
    """Harm each file of a finished artifact: verify, the stage itself and each reader must tell."""
    source = random.Random(seed)
    for name in files_of(stages.home / FOLDER[stage]):
        for harm in HARMS:
            check = partial(_harmed, stages, stage, name, harm, source.random())
            kind = "files removed" if harm == "removed" else "bytes damaged"
            yield Case(stage, kind, f"{name} {harm} in a finished artifact", check)


def _harmed(
    stages: Stages, stage: str, name: str, harm: str, place: float, folder: Path
) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    shutil.copytree(trial.quiet, trial.output)
    HARMS[harm](trial.output / name, place)
    harmed = snapshot(trial.watched)
    told = {DAMAGED, 4} if (name, harm) == ("manifest.json", "removed") else {DAMAGED}
    where = trial.output if 4 in told else trial.output / name
    verified = run(["verify", str(trial.output)], trial.log)
    if verified.code not in told:
        trial.lost("cola verify did not see it", verified)
    else:
        trial.said(verified, where)
    again = trial.run()
    # the stage itself looks at sizes alone, as it reads nothing and a large artifact takes hours
    if again.code != DONE or harm != "flipped" or name == "manifest.json":
        expected = told | {CONFLICT} if 4 in told else told
        if again.code not in expected:
            trial.lost("the stage itself did not see it", again)
        else:
            trial.said(again, where)
    trial.untouched(harmed)
    for reader in READERS[stage]:
        _read(trial, reader, told, where)
    return trial.verdict


def _read(trial: Trial, reader: str, told: set[int], harmed: Path) -> None:
    """A stage that reads the harmed file must say so; one that need not, make what it always makes."""
    reading = Trial(trial.stages, reader, trial.folder / reader.replace(" ", "-"), trial.verdict)
    reading.watched.mkdir(parents=True)
    outcome = reading.run(**{FOLDER[trial.stage]: trial.output})
    if outcome.code in told:
        reading.said(outcome, harmed)
    elif outcome.code != DONE:
        reading.lost(f"{reader} failed otherwise", outcome)
    else:
        before = len(trial.verdict.lost)
        reading.compare()
        if len(trial.verdict.lost) > before:
            reading.lost(f"{reader} read it and said nothing", outcome)


def unfinished(stages: Stages, stage: str, points: list[Point], seed: int) -> Iterator[Case]:
    """Kill a stage, harm each file it has made, run it again: it must tell, or make the file again."""
    source = random.Random(seed)
    seen: set[str] = set()
    for place, point in enumerate(points):
        # a file of a new phase has just become durable
        if point.call != "rename" or point.phase in seen or place + 1 == len(points):
            continue
        seen.add(point.phase)
        for harm in HARMS:
            check = partial(_harmed_and_resumed, stages, stage, point, harm, source.random())
            kind = "files removed" if harm == "removed" else "bytes damaged"
            yield Case(stage, kind, f"each file {harm} after a kill after {point}", check)


def _harmed_and_resumed(
    stages: Stages, stage: str, point: Point, harm: str, place: float, folder: Path
) -> Verdict:
    whole = Trial(stages, stage, folder).begin()
    run_with_fault(whole.command(), whole.log, whole.watched, point, "after")
    for number, name in enumerate(files_of(whole.output)):
        trial = Trial(stages, stage, folder / str(number), whole.verdict)
        shutil.copytree(whole.watched, trial.watched)
        path = trial.output / name
        if ".tmp" in name or path.stat().st_size < 2:
            continue
        HARMS[harm](path, place)
        outcome = trial.run()
        before = len(whole.verdict.lost), len(whole.verdict.unclear)
        if outcome.code == DONE:
            trial.verdict.resumed += 1
            trial.compare()
        elif outcome.code in (DAMAGED, CONFLICT):
            trial.said(outcome, trial.output)
        else:
            trial.unclear("it failed otherwise", outcome)
        for found, known in zip((whole.verdict.lost, whole.verdict.unclear), before, strict=True):
            found[known:] = [f"{name} {harm}: {text}" for text in found[known:]]
    return whole.verdict


def foreign(stages: Stages, stage: str, points: list[Point]) -> Iterator[Case]:
    """Files of somebody else in the place of the output, in a finished and in an unfinished artifact."""
    yield Case(stage, "foreign files", "in place of the output", partial(_occupied, stages, stage))
    for name in ("notes.txt", "parts/notes.txt"):
        check = partial(_foreign_in_finished, stages, stage, name)
        yield Case(stage, "foreign files", f"{name} in a finished artifact", check)
    middle = [point for point in points if point.call == "rename"][2:3]
    for point in middle:
        check = partial(_foreign_in_unfinished, stages, stage, point)
        yield Case(stage, "foreign files", "notes.txt in an unfinished artifact", check)


def _occupied(stages: Stages, stage: str, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    trial.output.mkdir()
    (trial.output / "notes.txt").write_text("mine")
    before = snapshot(trial.watched)
    outcome = trial.run()
    if outcome.code != CONFLICT:
        trial.lost("it wrote beside foreign files", outcome)
    trial.said(outcome, trial.output)
    trial.untouched(before)
    trial.output.joinpath("notes.txt").unlink()
    trial.output.rmdir()
    trial.output.write_text("a file")
    outcome = trial.run()
    if outcome.code != CONFLICT or trial.output.read_text() != "a file":
        trial.lost("it did not keep off a file", outcome)
    trial.output.unlink()
    return trial.finish()


def _foreign_in_finished(stages: Stages, stage: str, name: str, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    shutil.copytree(trial.quiet, trial.output)
    path = trial.output / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = snapshot(trial.watched)
    verified = run(["verify", str(trial.output)], trial.log)
    if verified.code != DAMAGED:
        trial.lost("cola verify did not see it", verified)
    trial.said(verified, path)
    trial.run()
    trial.untouched(before)
    for reader in READERS[stage]:
        _read(trial, reader, set(), path)
    return trial.verdict


def _foreign_in_unfinished(stages: Stages, stage: str, point: Point, folder: Path) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    run_with_fault(trial.command(), trial.log, trial.watched, point, "after")
    path = trial.output / "notes.txt"
    path.write_text("mine")
    before = snapshot(trial.watched)
    outcome = trial.run()
    if outcome.code == CONFLICT:
        trial.said(outcome, trial.output)
        trial.untouched(before)
    elif outcome.code == DONE:
        if not path.is_file() or path.read_text() != "mine":
            trial.lost("the foreign file has gone")
        else:
            path.unlink()  # its own files must be the quiet run's, and the manifest must not claim this one
        trial.compare()
    else:
        trial.unclear("it failed otherwise", outcome)
    return trial.verdict


def changed(stages: Stages, stage: str, points: list[Point]) -> Iterator[Case]:
    """Another setting or another input for a finished and an unfinished artifact: refused, untouched."""
    later = points[len(points) // 2 :]
    middle = next((point for point in later if point.call == "fsync"), later[0])
    name = OTHER_INPUTS[stage]
    different: tuple[dict[str, object], ...] = (
        OTHER_SETTINGS[stage],
        {name: stages.other.input(name)},
    )
    for changes in different:
        for point in (None, middle):
            check = partial(_changed, stages, stage, changes, point)
            state = "an unfinished" if point else "a finished"
            yield Case(
                stage, "changed settings", f"{', '.join(changes)} for {state} artifact", check
            )


def _changed(
    stages: Stages, stage: str, changes: dict[str, object], point: Point | None, folder: Path
) -> Verdict:
    trial = Trial(stages, stage, folder).begin()
    if point is None:
        shutil.copytree(trial.quiet, trial.output)
    else:
        run_with_fault(trial.command(), trial.log, trial.watched, point, "after")
    before = snapshot(trial.watched)
    outcome = trial.run(**changes)
    if outcome.code != CONFLICT:
        trial.lost("it was not refused", outcome)
    trial.said(outcome, trial.output)
    trial.untouched(before)
    return trial.finish()
