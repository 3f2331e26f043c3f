"""What it costs to leave out near-duplicates: CPU seconds of `cola tokenize` with and without, in turn.

    python tests/bench/near_duplicates.py CORPUS [--rounds 2] [--json]

CORPUS is a file, folder or pattern. `ratio` is the least CPU time of a run with `--near-duplicates 0.8` over
the least of one without, `left_out` how many documents went. Needs rensa.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli.artifacts.manifest import read_manifest
from tests.bench.shards import cost

CHUNK = 4 << 20  # bytes of text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(asked.rounds):
            for how, options in (("with", ["--near-duplicates", "0.8"]), ("without", [])):
                output = Path(name, f"{how}-{turn}")
                seconds[how].append(cost(asked.corpus, output, CHUNK, *options)[0])
        statistics = read_manifest(Path(name, "with-0")).statistics
    found = {
        "ratio": min(seconds["with"]) / min(seconds["without"]),
        "left_out": statistics["near_duplicates"],
        **seconds,
    }
    if asked.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{key} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
