"""docs/reliability.md: what was tried and what came of it."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version

from tests.faults.campaign import KINDS, Campaign, Result, counts
from tests.faults.stages import ORDER

TITLES = {
    "killed before": "SIGKILL before the call",
    "killed after": "SIGKILL after the call",
    "killed within": "SIGKILL with half of a write done",
    "killed in --overwrite": "SIGKILL while `--overwrite` replaces another artifact",
    "power cuts": "power cuts (distinct disks)",
    "EIO": "EIO returned by the call",
    "ENOSPC": "ENOSPC from the call on",
    "full disks": "real full disks, by size",
    "signals": "SIGTERM, SIGINT, once and twice",
    "workers": "SIGKILL of a run that has workers",
    "two writers": "a second writer comes",
    "bytes damaged": "a bit flipped, a file cut",
    "files removed": "a file removed",
    "foreign files": "foreign files",
    "changed settings": "another setting or input",
}
INTRODUCTION = """\
# Reliability

`just crash` (`python -m tests.faults`) wrote this page: {cases} faults on {points:,} write points of
{stages} stages, in {duration}. **Lost or silently wrong: {lost}.** {unclear}

## How

Every stage is run for real, with tiny settings and one thread. All training is one loop, so everything but
a kill is tried in `train vae` and `train prior` alone, and `train ar` stands for both baselines; `--extend`
begins with the finished artifact of a shorter run. Where a stage writes is not listed by hand: the kernel
holds the process at every system call that changes a file under the output's folder (seccomp user
notification), whether Python, Arrow's C++ or the Rust of safetensors makes it.
Each such call is a *write point*, and at each one the stage is

- **killed** (SIGKILL) before the call, after it, and, for a write, with half of its bytes on disk;
- **cut from power**: of files only the bytes of their last `fsync` remain, of folders only the entries of
  theirs; or all entries, but of bytes only those synced. Both are run again where they differ from every
  disk before;
- **failed**: EIO from this call; a disk that is full from this call on; and, apart from points, a real
  file system of every size from empty to large enough, in steps of two pages;
- **signalled** (SIGTERM and SIGINT, one of them twice in a row; also while Python and torch are being
  loaded) at the first and last point of each phase, and met by **a second writer** at its first (points
  that differ in a number are one phase).

After each, the same command runs again and must end with every byte of an undisturbed run. Exempt are
times alone: the columns of seconds and rates in `metrics.parquet`, `seconds` in the manifest, and the
digests of these two files. A stage that fails must exit with a sentence that names the file, and leave no
temporary file. The second writer must stop at once (exit code 3), name the first, and touch nothing.

**Damage**: each file of a finished artifact gets a flipped bit, is cut, is removed; `cola verify` and
every stage that reads the file must name it (exit code 5), and a stage that does not need the file must
make what it always makes. The stage itself, run again, reads no bytes and must see by size what is cut or
gone. Each file of an interrupted run is harmed likewise: the run that goes on must name the file or make
it again. Foreign files and other settings or inputs must be refused or left alone.
"""


def page(campaign: Campaign, results: list[Result], possible: int, duration: str) -> str:
    """The page; `possible` faults could have been tried."""
    lost = [r for r in results if r.verdict.lost]
    unclear = [r for r in results if r.verdict.unclear]
    text = INTRODUCTION.format(
        cases=f"{len(results):,} of {possible:,}"
        if len(results) < possible
        else f"all {possible:,}",
        points=sum(map(len, campaign.points.values())),
        stages=len(ORDER),
        duration=duration,
        lost=len(lost),
        unclear=f"Nothing lost, but not said as promised: {len(unclear)}.",
    )
    text += "\n## Faults\n\n" + _table(campaign, results)
    text += "\n## Write points\n\n" + _points(campaign)
    if campaign.agreed:
        names = ", ".join(f"`{stage}`" for stage in campaign.agreed)
        text += (
            f"\n`strace` on a `cola` started afresh counts the same calls on the same files in {names},"
            "\nand that run's bytes are the same.\n"
        )
    text += "".join(f"\nstrace counts otherwise: {line}\n" for line in campaign.disagreements)
    for kind, reason in campaign.skipped.items():
        text += f"\nNot tried here: {TITLES.get(kind, kind)} ({reason}).\n"
    for title, found, pick in (
        ("Lost or silently wrong", lost, lambda v: v.lost),
        ("Not said as promised", unclear, lambda v: v.unclear),
    ):
        if found:
            text += f"\n## {title}\n\n" + _failures(campaign, found, pick)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyarrow", "safetensors"))
    text += f"\nSeed {campaign.seed}, Python {platform.python_version()}, {versions}.\n"
    return text


def _row(title: str, values: list[int], bold: bool = False) -> str:
    cells = [title, *(f"{value:,}" for value in [*values, sum(values)])]
    return "| " + " | ".join(f"**{cell}**" if bold else cell for cell in cells) + " |\n"


def _heading(first: str) -> str:
    names = [first, *(f"`{stage}`" for stage in ORDER), "all"]
    return "| " + " | ".join(names) + " |\n|---|" + "---:|" * (len(names) - 1) + "\n"


def _table(campaign: Campaign, results: list[Result]) -> str:
    tried = counts(results)

    def by_stage(count: Callable[[Result], int]) -> list[int]:
        return [sum(count(r) for r in results if r.stage == stage) for stage in ORDER]

    text = _heading("")
    text += _row("write points found", [len(campaign.points[stage]) for stage in ORDER])
    for kind in KINDS:
        text += _row(TITLES[kind], [tried[kind, stage] for stage in ORDER])
    text += _row("runs that went on afterwards", by_stage(lambda r: r.verdict.resumed))
    text += _row("bytes compared", by_stage(lambda r: r.verdict.bytes))
    text += _row("lost or silently wrong", by_stage(lambda r: bool(r.verdict.lost)), bold=True)
    return text + _row("not said as promised", by_stage(lambda r: bool(r.verdict.unclear)))


def _points(campaign: Campaign) -> str:
    found = {stage: Counter(p.call for p in campaign.points[stage]) for stage in ORDER}
    calls = sorted({call for counter in found.values() for call in counter})
    text = _heading("call")
    for call in calls:
        text += _row(call, [found[stage][call] for stage in ORDER])
    return text


def _failures(
    campaign: Campaign, found: list[Result], pick: Callable[..., list[str]], most: int = 60
) -> str:
    # the folders of a run are nobody's business
    lines = [
        f"- `{r.stage}`, {r.kind}, {r.name}: {' '.join('; '.join(pick(r.verdict)).split())}"
        for r in sorted(found, key=lambda r: (r.stage, r.kind, r.name))
    ]
    text = "\n".join(line.replace(str(campaign.home), "")[:600] for line in lines[:most])
    return text + (f"\n- and {len(lines) - most} more" if len(lines) > most else "") + "\n"
