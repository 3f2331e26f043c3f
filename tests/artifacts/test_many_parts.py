"""An artifact of a hundred thousand parts: resumed, opened and verified, work and memory in proportion."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.catalog import in_order
from cola_cli.artifacts.manifest import MANIFEST_LIMIT, PARTS_LIMIT
from cola_cli.artifacts.parts import record_name, write_part
from cola_cli.artifacts.verify import verify
from cola_cli.errors import UsageError
from tests.bench import scale

PARTS = 100_002  # of which the last have a digit more
COUNTED = ("open", "os.scandir", "os.listdir")
counts: dict[str, int] | None = None


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if counts is not None and event in COUNTED:
        counts[event] = counts.get(event, 0) + 1


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """How often files are opened and directories listed."""
    global counts
    if not hasattr(sys, "_cola_counts"):
        sys.addaudithook(_count)
        sys._cola_counts = True  # type: ignore[attr-defined]
    found = counts = {}
    try:
        yield found
    finally:
        counts = None


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_hundred_thousand_parts_are_resumed_opened_and_verified(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    scale.fill(path, PARTS)
    for index in (3, 99_999, 100_001):
        (path / record_name(index)).unlink()
    (path / "parts" / "00007.parquet").write_bytes(b"another part of an art")
    resumed = scale.step("resume", path, PARTS)
    assert resumed["result"] == 4
    assert resumed["mb"] < 1000
    opened = scale.step("open", path, PARTS)
    assert opened["result"] == PARTS
    assert opened["mb"] < 700
    artifact = Artifact.open(path)
    assert [artifact.part(i).index for i in (0, 99_999, 100_000, PARTS - 1)] == [
        0,
        99_999,
        100_000,
        PARTS - 1,
    ]
    assert artifact.part_file(PARTS - 1).read_bytes() == scale.DATA
    found = scale.step("verify", path, PARTS)
    assert found["result"] == 0
    assert found["mb"] < 900
    assert scale.step("up to date", path, PARTS)["result"] is True


def test_files_are_opened_and_directories_listed_as_often_a_part_whatever_their_number(
    tmp_path: Path,
) -> None:
    found: dict[int, dict[str, dict[str, int]]] = {}
    for parts in (20, 60):
        path = tmp_path / str(parts)
        scale.fill(path, parts)
        found[parts] = {}
        for name, step in scale.STEPS.items():
            if name != "fill":
                with counted() as events:
                    step(path, parts)
                found[parts][name] = events
    for name, events in found[60].items():
        few = found[20][name]
        assert events.get("os.scandir", 0) == few.get("os.scandir", 0), name
        assert events.get("os.listdir", 0) == few.get("os.listdir", 0), name
        assert events.get("open", 0) - few.get("open", 0) <= 40 * 4, name
    assert not found[60]["list"].get("open")
    assert found[60]["open"].get("open", 0) < 5


def test_parts_are_read_by_number_when_one_has_more_digits() -> None:
    names = ["00007.parquet", "99999.parquet", "100000.parquet", "100001.parquet"]
    assert in_order([Path(name) for name in sorted(names)]) == [Path(name) for name in names]


def test_one_of_many_parts_is_opened_without_the_others(tmp_path: Path) -> None:
    scale.fill(tmp_path / "a", 50)
    scale.resume(tmp_path / "a", 50)
    with counted() as events:
        assert Artifact.open(tmp_path / "a").part(42).index == 42
    assert events["open"] < 6


def test_more_parts_than_a_manifest_lists_are_refused_before_one_is_made(tmp_path: Path) -> None:
    sizes = []
    for name, parts in (("a", 10), ("b", 60)):
        scale.fill(tmp_path / name, parts)
        scale.resume(tmp_path / name, parts)
        sizes.append((tmp_path / name / "manifest.json").stat().st_size)
    longer = (
        2 * len("9") + len("000000") + len("jsonl.zst") - len("parquet")
    )  # names, bytes, suffix
    assert ((sizes[1] - sizes[0]) / 50 + longer) * PARTS_LIMIT < MANIFEST_LIMIT
    with (
        pytest.raises(UsageError, match="a manifest lists 800,000"),
        write_part(tmp_path / "a", PARTS_LIMIT, scale.IDENTITY),
    ):
        pytest.fail("the part is made")
    assert verify(tmp_path / "a").findings == []
