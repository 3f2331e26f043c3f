"""What it costs to tokenize a corpus in shards, in CPU seconds, against one run of the same corpus.

    python tests/bench/shards.py [--shards 1 8 64] [--files 64] [--megabytes 64] [--text FILE] [--json]
    python tests/bench/shards.py --memory [--files 64] [--megabytes 10000] [--text FILE]

The shards run one after another, each in a process of its own, and then the run that completes the artifact.
`ratio` is the sum of their CPU seconds over those of one run. A process costs `start` seconds, whatever its
work: `ratio_of_work` leaves out that much of every process, and is what `ratio` tends to in a larger corpus.
`peak_mb` is the most memory that a process took. A chunk is here a 64th of the corpus: 64 shards have work.

With `--memory` shard 0 of 64 alone, in chunks of 32 MiB: it surveys the whole corpus and makes its chunks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

COLA = [sys.executable, "-m", "cola_cli"]


def make_corpus(folder: Path, files: int, size: int, text: Path | None) -> None:
    """Files of equal size, JSON lines and plain text in turn: documents of a text, or of made-up words."""
    source = random.Random(0)
    if text is not None:
        pool = [part for part in text.read_text().split("\n\n") if part.strip()]
    else:
        words = ["".join(source.choices("etaoinshrdlu", k=2 + i % 7)) for i in range(20_000)]
        pool = [" ".join(source.choices(words, k=12)) + "." for _ in range(20_000)]
    folder.mkdir()
    for number in range(files):
        held, suffix = 0, "jsonl" if number % 2 else "txt"
        # one at a time: the most memory that a process had is inherited by those that it starts
        with (folder / f"{number:03d}.{suffix}").open("w") as file:
            while held < size // files:
                document = "\n".join(source.choices(pool, k=source.randint(5, 60)))
                held += len(document)
                file.write(
                    json.dumps({"text": document}) + "\n" if number % 2 else document + "\n\n"
                )


def cost(corpus: Path | str, output: Path, chunk: int, *options: str) -> tuple[float, float]:
    """CPU seconds of `cola tokenize` with its children, and its largest memory in MB."""
    common = ["--vocab-size", "2048", "--workers", "1", "--quiet", "--set", f"part_bytes={chunk}"]
    command = [*COLA, "tokenize", str(corpus), "-o", str(output), *common, *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(shards: list[int], files: int, size: int, text: Path | None) -> dict[str, object]:
    """Costs of one run, of a process without work, and of every number of shards."""
    sample = ("--set", "sample_bytes=4000000")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder / "corpus", files, size, text)
        make_corpus(folder / "little", files, 300 * files, text)
        cost(folder / "little", folder / "warm", size // 64, *sample)
        start, _ = cost(folder / "little", folder / "start", size // 64, *sample)
        one, peak = cost(folder / "corpus", folder / "one", size // 64, *sample)
        rows = []
        for count in shards:
            output = folder / f"of{count}"
            runs = [
                cost(folder / "corpus", output, size // 64, *sample, "--shard", f"{index}/{count}")
                for index in range(count if count > 1 else 0)
            ]
            runs.append(cost(folder / "corpus", output, size // 64, *sample))
            total = sum(seconds for seconds, _ in runs)
            rows.append(
                {
                    "shards": count,
                    "seconds": round(total, 2),
                    "ratio": round(total / one, 3),
                    "ratio_of_work": round((total - start * len(runs)) / (one - start), 3),
                    "peak_mb": round(max(memory for _, memory in runs)),
                }
            )
    return {
        "files": files,
        "bytes": size,
        "start": round(start, 2),
        "seconds": round(one, 2),
        "peak_mb": round(peak),
        "shards": rows,
    }


def memory(files: int, size: int, text: Path | None) -> tuple[float, float]:
    """CPU seconds and largest memory in MB of shard 0 of 64, which nobody helps."""
    with tempfile.TemporaryDirectory() as name:
        make_corpus(Path(name) / "corpus", files, size, text)
        one = "--set", "sample_bytes=4000000", "--shard", "0/64"
        return cost(Path(name) / "corpus", Path(name) / "out", 32 << 20, *one)


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument(
        "--text", type=Path, help="take documents from this text, not made-up words"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", action="store_true", help="of one shard of 64")
    asked = parser.parse_args()
    if asked.memory:
        seconds, peak = memory(asked.files, asked.megabytes << 20, asked.text)
        print(f"shard 0 of 64: {seconds:.1f} s of CPU, {peak:.0f} MB")
        return
    found = measure(asked.shards, asked.files, asked.megabytes << 20, asked.text)
    if asked.json:
        print(json.dumps(found))
        return
    print(
        f"one run: {found['seconds']} s of CPU, {found['peak_mb']} MB; a start: {found['start']} s"
    )
    for row in found["shards"]:  # type: ignore[attr-defined]
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
