"""Time until `cola verify` names a flipped byte in a large artifact, against reading it with `sha256sum`.

    python tests/bench/verify.py [--megabytes 1024] [--parts 16] [--rounds 3] [--json] [--page]

The byte is the last of the last part, so everything before it is read. Both read from the page cache, in
turns; `cola` is measured as a whole, with the start of Python. The best time of each counts. With --page the
numbers also go to docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli.artifacts import Identity, Output
from tests.reliability import FLIPPED, write_section

PIECE = 1 << 20


def make(path: Path, megabytes: int, parts: int) -> Path:
    """An artifact of random bytes; the file whose last byte is flipped afterwards."""
    identity = Identity(stage="bench", settings={}, inputs={})
    with Output.open(path, "tokens", identity).writing() as writer:
        for index in range(parts):
            with writer.part(index) as part, part.path.open("wb") as file:
                for _ in range(megabytes // parts):
                    file.write(os.urandom(PIECE))
                part.rows = 1
        writer.finish()
    last = path / f"parts/{parts - 1:05d}.parquet"
    with last.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    return last


def seconds(command: list[str], code: int, said: str) -> float:
    """How long a command takes; it must end with `code` and have `said` in its output."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - begin
    if done.returncode != code or said not in done.stdout + done.stderr:
        raise SystemExit(f"{command[0]}: exit {done.returncode}: {done.stdout}{done.stderr}")
    return taken


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=1024)
    options.add_argument("--parts", type=int, default=16)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", action="store_true")
    options.add_argument("--page", action="store_true")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="cola-verify-") as folder:
        artifact = Path(folder) / "artifact"
        flipped = make(artifact, asked.megabytes, asked.parts)
        code = "from cola_cli.cli.main import main; main()"
        verify = [sys.executable, "-c", code, "verify", "--quiet", str(artifact)]
        plain = ["sha256sum", *map(str, sorted(artifact.glob("parts/*.parquet")))]
        seconds(plain, 0, flipped.name)  # into the page cache
        times: dict[str, list[float]] = {"cola verify": [], "sha256sum": []}
        for _ in range(asked.rounds):
            times["sha256sum"].append(seconds(plain, 0, flipped.name))
            times["cola verify"].append(seconds(verify, 5, f"{flipped} is damaged"))
    best = {name: min(values) for name, values in times.items()}
    ratio = best["cola verify"] / best["sha256sum"]
    if asked.page:
        write_section(
            FLIPPED,
            f"`python tests/bench/verify.py --megabytes {asked.megabytes} --page`: the last byte of"
            f" {asked.megabytes:,} MiB is flipped. `cola verify`\nnames the file after"
            f" {best['cola verify']:.2f} s, the start of Python included; `sha256sum` reads the same"
            f" files in {best['sha256sum']:.2f} s: a ratio of\n**{ratio:.2f}** (both on one"
            " core; Python's OpenSSL knows the processor's\ninstructions for SHA-256). At most 1.5 is"
            " promised.\n",
        )
    if asked.json:
        print(json.dumps({"megabytes": asked.megabytes, "seconds": times, "ratio": ratio}))
    else:
        for name, value in best.items():
            print(f"{name}: {value:.2f} s ({asked.megabytes / value:,.0f} MiB/s)")
        print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
