"""Parsers run in processes of their own: one that dies or swallows the memory is counted, not fatal."""

from __future__ import annotations

import dataclasses
import json
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hostile.surfaces import parsers
from tests.hostile.tally import Tally

SECONDS = 600  # of one process
MEMORY = 3 << 30  # bytes that a process may ask for
DEATHS = 5  # of one parser, before the rest of its inputs are given up


def run_parsers(
    names: list[str], originals: Path, count: int, seed: int = 0, most: int | None = None
) -> tuple[list[Tally], int]:
    """Tallies of the named parsers (all cases, or `most` of each by chance), and the peak memory in bytes of
    the processes that ran them."""
    tallies: dict[str, Tally] = {name: Tally(name) for name in names}
    peak = 0
    with tempfile.TemporaryDirectory() as folder:
        waiting, skip, deaths = list(names), 0, 0
        while waiting:
            result = _child(waiting, originals, Path(folder), count, seed, skip, most)
            for line in result.stdout.splitlines():
                document = json.loads(line)
                peak = max(peak, document.pop("peak"))
                tallies[waiting.pop(0)].add(Tally(**document))
                skip = deaths = 0
            if waiting:
                current = Path(folder) / "current"
                number = struct.unpack("<Q", current.read_bytes())[0] if current.exists() else 0
                reason = (result.stderr.strip().splitlines() or [""])[-1]
                tallies[waiting[0]].tried += 1
                tallies[waiting[0]].crash(
                    f"case {number}", f"the process died ({result.returncode}): {reason}"
                )
                skip, deaths = number + 1, deaths + 1
                if deaths == DEATHS:
                    waiting.pop(0)
                    skip = deaths = 0
    return list(tallies.values()), peak


def _child(
    names: list[str],
    originals: Path,
    work: Path,
    count: int,
    seed: int,
    skip: int,
    most: int | None,
) -> subprocess.CompletedProcess[str]:
    arguments = [
        str(originals),
        str(work),
        str(count),
        str(seed),
        str(skip),
        str(most or 0),
        *names,
    ]
    command = [sys.executable, "-m", "tests.hostile.worker", *arguments]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd=Path(__file__).parents[2],
        )
    except subprocess.TimeoutExpired as error:
        out = error.stdout or b""
        return subprocess.CompletedProcess(command, -1, out.decode(), "it took too long")


def main(arguments: list[str]) -> None:
    """In the child: run the parsers one after the other, a JSON line each."""
    originals, work = map(Path, arguments[:2])
    count, seed, skip, most = map(int, arguments[2:6])
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    table = {parser.name: parser for parser in parsers()}
    for name in arguments[6:]:
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            (Path(scratch) / "current").symlink_to(work / "current")
            tally = table[name].run(originals, Path(scratch), count, seed, skip, most or None)
        skip = 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(dataclasses.asdict(tally) | {"peak": peak}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
