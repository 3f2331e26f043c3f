"""`python -m tests.faults.histories`: any history of a stage ends in the artifact of a quiet run.

Hypothesis draws the histories: runs, kills at any write point, shards of any number, verifications, repairs
after damage. A failing one is made as short as can be and printed.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given, seed, settings
from hypothesis import strategies as st

from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS
from tests.reliability import HISTORIES, PAGE, write_section

if TYPE_CHECKING:
    from tests.faults.stages import Stages

STAGES = ("tokenize", "train vae", "encode", "train prior", "sample")
SHARDED = ("tokenize", "encode")
MOST_POINTS = 170
MOST_EVENTS = 6


@dataclass(frozen=True)
class Run:
    """The stage, undisturbed."""


@dataclass(frozen=True)
class Kill:
    """The stage, killed before the write point of that number, if it comes so far."""

    point: int


@dataclass(frozen=True)
class Shard:
    """One share of the parts; of stages that have none, a kill."""

    index: int
    count: int
    point: int | None


@dataclass(frozen=True)
class Verify:
    """`cola verify`: nothing is damaged, whatever was killed."""


@dataclass(frozen=True)
class Damage:
    """A file is cut short, and `cola verify --repair` drops it."""

    file: int


POINTS = st.integers(0, MOST_POINTS)
EVENTS = st.one_of(
    st.just(Run()),
    st.builds(Kill, POINTS),
    st.integers(2, 3).flatmap(
        lambda count: st.builds(
            Shard, st.integers(0, count - 1), st.just(count), st.none() | POINTS
        )
    ),
    st.just(Verify()),
    st.builds(Damage, st.integers(0, 30)),
)


def live(stages: Stages, stage: str, history: list[object], folder: Path) -> None:
    """Go through a history, then run to the end and compare."""
    from tests.faults.processes import Running, run
    from tests.faults.stages import FOLDER, differences, fresh

    watched = fresh(folder / "w")
    output, log = watched / FOLDER[stage], folder / "log"
    state_lost = False
    for event in history:
        if isinstance(event, Verify | Damage):
            if not (output / "manifest.json").is_file():
                continue
            if isinstance(event, Damage):
                state_lost |= _cut(output, event.file).startswith(CHECKPOINTS)
            options = ["--repair"] if isinstance(event, Damage) else []
            verified = run(["verify", str(output), *options], log)
            assert verified.code == 0, verified.stderr
            continue
        arguments = stages.command(stage, output)
        point = getattr(event, "point", None)
        if isinstance(event, Shard):
            if stage in SHARDED:
                arguments += ["--shard", f"{event.index}/{event.count}"]
            else:
                point = event.index + 40 * event.count
        running = Running(arguments, log, None if point is None else watched)
        for _ in range(point or 0):
            if running.next() is None:
                break
        if point is not None:
            running.kill()
        outcome = running.end()
        assert outcome.code in ((0,) if point is None else (0, -9)), outcome.stderr
    last = run(stages.command(stage, output), log)
    assert last.code == 0, last.stderr
    different, _ = differences(output, stages.home / FOLDER[stage])
    if state_lost and not (output / CHECKPOINTS).exists():  # the model is whole without it
        different = [one for one in different if not one.startswith((CHECKPOINTS, "manifest.json"))]
    assert not different, different


def _cut(output: Path, number: int) -> str:
    """Cut short the file of that number, of those that the artifact has a record of; its name, or ""."""
    from cola_cli.artifacts.manifest import read_manifest
    from cola_cli.artifacts.parts import recorded_parts

    names = [record.path for record in read_manifest(output).files]
    names += [record.file for record in recorded_parts(output).values()]
    if not names:
        return ""
    name = sorted(set(names))[number % len(set(names))]
    (output / name).write_bytes((output / name).read_bytes()[:-1])
    return name


def main() -> int:
    """Try as many histories as asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.histories", description=__doc__)
    parser.add_argument("--examples", type=int, default=150)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument(
        "--page", type=Path, help=f"where to write the section (150 or more: {PAGE.name})"
    )
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)

    from tests.faults import processes

    processes.prepare()
    from tests.faults.stages import Stages

    tried, begin = 0, time.monotonic()
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="cola-histories-", dir=where) as name:
        folder = Path(name).resolve()
        stages = Stages(folder / "quiet")

        def quiet(stage: str, arguments: list[str]) -> None:
            outcome = processes.run(arguments, folder / "log")
            assert outcome.code == 0, outcome.stderr

        stages.make(quiet)

        @settings(max_examples=asked.examples, deadline=None, database=None)
        @seed(asked.seed)
        @given(st.sampled_from(STAGES), st.lists(EVENTS, min_size=1, max_size=MOST_EVENTS))
        def ends_in_the_same_artifact(stage: str, history: list[object]) -> None:
            nonlocal tried
            tried += 1
            live(stages, stage, history, folder / "case")

        ends_in_the_same_artifact()
    text = (
        f"`python -m tests.faults.histories --examples {asked.examples} --seed {asked.seed}`:"
        f" {tried} histories of up to {MOST_EVENTS}\nruns, kills at write points, shards, verifications"
        " and repairs after damage, drawn by hypothesis for\n"
        f"{', '.join(f'`{stage}`' for stage in STAGES)}. All ended in the artifact of the quiet run,"
        f" in {(time.monotonic() - begin) / 60:.0f} min.\n"
    )
    print(text)
    if page := asked.page or (PAGE if asked.examples >= 150 else None):
        write_section(HISTORIES, text, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
