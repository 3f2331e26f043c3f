"""`python -m tests.hostile`: many more hostile files than the tests try, and a table of what happened."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.hostile.originals import make_originals
from tests.hostile.surfaces import parsers
from tests.hostile.tally import table
from tests.hostile.worker import run_parsers


def main() -> int:
    """Run every parser; the exit code is 1 when one crashed."""
    names = [parser.name for parser in parsers()]
    options = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    options.add_argument("--inputs", type=int, default=2000, help="random inputs of every parser")
    options.add_argument("--seed", type=int, default=0, help="another seed tries other inputs")
    options.add_argument("--parser", action="append", choices=names, help="only this one")
    options.add_argument("--originals", type=Path, help="real files made before")
    given = options.parse_args()
    tallies, largest = [], 0
    with tempfile.TemporaryDirectory() as folder:
        originals = given.originals or make_originals(Path(folder) / "originals")
        for name in given.parser or names:
            started = time.monotonic()
            found, peak = run_parsers([name], originals, given.inputs, given.seed)
            tallies += found
            largest = max(largest, peak)
            seconds = time.monotonic() - started
            print(f"{name}: {found[0].tried:,} in {seconds:.0f} s", file=sys.stderr, flush=True)
            for crash in found[0].crashes:
                print(f"  {crash}", file=sys.stderr, flush=True)
    print(table(tallies))
    print(f"\nSeed {given.seed}; peak memory of a process {largest / 2**20:,.0f} MiB.")
    return int(any(tally.crashed for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
