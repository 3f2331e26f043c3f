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
from tests.reliability import HOSTILE, PAGE, write_section

INTRODUCTION = """\
{command} wrote this section. Each parser of what others may have made gets real files
with bits flipped, cut at random places, spliced with what parsers trip over, JSON values replaced one by one,
headers and footers that lie; where files have digests also with the digests put right, as whoever makes a
hostile file would. Every input must give a result or one sentence on one printable line that names the file,
within 20 seconds and 3 GiB; with the digests left, no change may be accepted.

"""


def main() -> int:
    """Run every parser; the exit code is 1 when one crashed."""
    names = [parser.name for parser in parsers()]
    options = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    options.add_argument("--inputs", type=int, default=2000, help="random inputs of every parser")
    options.add_argument("--seed", type=int, default=0, help="another seed tries other inputs")
    options.add_argument("--parser", action="append", choices=names, help="only this one")
    options.add_argument("--originals", type=Path, help="real files made before")
    options.add_argument(
        "--page", type=Path, help=f"where the table goes (every parser, 2000 inputs: {PAGE.name})"
    )
    given = options.parse_args()
    if given.page is None and given.parser is None and given.inputs >= 2000:
        given.page = PAGE
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
    text = table(tallies)
    text += f"\n\nSeed {given.seed}; peak memory of a process {largest / 2**20:,.0f} MiB.\n"
    print(text)
    if given.page:
        command = f"`python -m tests.hostile --inputs {given.inputs}`"
        write_section(HOSTILE, INTRODUCTION.format(command=command) + text, given.page)
    return int(any(tally.crashed for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
