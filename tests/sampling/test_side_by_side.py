"""How rows are shared out among threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cola_cli.sampling.fast.side_by_side import SideBySide, part_count
from cola_cli.sampling.requests import Generating, Request
from cola_cli.settings.sample import SamplingOptions


@pytest.mark.parametrize(
    ("rows", "threads", "expected"),
    [
        (1, 2, 1),
        (2, 2, 2),
        (3, 2, 1),  # 2 + 1 would leave a thread idle for a quarter of the time
        (17, 2, 2),
        (2, 8, 2),
        (6, 8, 2),
        (64, 8, 8),
        (16, 1, 1),
    ],
)
def test_parts(rows: int, threads: int, expected: int) -> None:
    assert part_count(rows, threads) == expected


def rows(count: int) -> list[Generating]:
    none = torch.empty(0, 1)
    return [
        Generating(Request(i, []), i, none, none, 0, 0, 1, SamplingOptions(), True)
        for i in range(count)
    ]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_each_row_is_worked_on_once_in_order_on_threads_with_their_share() -> None:
    seen: list[tuple[str, int]] = []
    meeting = threading.Barrier(2, timeout=240)  # both parts must be at work at once

    def work(part: list[Generating], noise: Tensor) -> Tensor:
        meeting.wait()
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return noise + torch.tensor([row.slot for row in part]).view(-1, 1, 1)

    out = SideBySide(weights=1, positions=1).run(work, rows(8), torch.zeros(8, 2, 3))
    assert out[:, 0, 0].tolist() == list(range(8))
    assert len({name for name, _ in seen}) == 2
    assert {count for _, count in seen} == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("width", "positions", "count", "threads"),
    [
        (192, 4, 1, 1),
        (256, 16, 1, 1),
        (256, 32, 1, 2),  # with guidance
        (512, 4, 1, 2),
        (256, 16, 3, 2),  # of a batch that is not halved
        (2048, 1, 1, 2),
    ],
)
def test_a_small_layer_is_for_one_thread(
    width: int, positions: int, count: int, threads: int
) -> None:
    seen: list[int] = []

    def work(part: list[Generating], noise: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return noise

    layer = 12 * width**2
    SideBySide(layer, positions).run(work, rows(count), torch.zeros(count, 1, 1))
    assert seen == [threads]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_an_error_is_raised_when_all_parts_have_ended() -> None:
    ended = []

    def work(part: list[Generating], noise: Tensor) -> Tensor:
        if part[0].slot == 0:
            raise MemoryError("no room")
        time.sleep(0.2)
        ended.append(part)
        return noise

    with pytest.raises(MemoryError, match="no room"):
        SideBySide(weights=1, positions=1).run(work, rows(8), torch.zeros(8, 1, 1))
    assert len(ended) == 1
