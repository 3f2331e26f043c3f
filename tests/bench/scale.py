"""What an artifact of very many parts costs, on this machine, and what follows for a fleet.

    python tests/bench/scale.py [--parts 10000] [--json]            constants of this machine
    python tests/bench/scale.py --text 10e12 --workers 1000          with the plan that follows from them

An artifact of synthetic parts is opened, verified and resumed: CPU time and memory of each step, in a process
of its own; of the commit of a part, which waits for the disk, seconds on the clock. The plan is a simulation
of shards that make the parts of `--text` bytes and add each under the artifact's lock, with these constants.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli.artifacts import Artifact, Identity, Output
from cola_cli.artifacts.files import sha256_bytes
from cola_cli.artifacts.lock import POLL_SECONDS
from cola_cli.artifacts.manifest import PartRecord, signed_json
from cola_cli.artifacts.parts import ARTIFACT, record_name, recorded_indices, write_part
from cola_cli.artifacts.verify import verify
from cola_cli.machine.threads import peak_memory

IDENTITY = Identity(stage="encode", settings={}, inputs={"tokens": "0" * 64})
DATA = b"a part of an artifact"
PART_MEGABYTES = (4, 64, 256)  # of text; tokenize.part_bytes
CHANNELS = 16  # of the sums in a record, as those of latents have


def place(path: Path) -> Output:
    """The output of the synthetic artifact."""
    return Output.open(path, "latents", IDENTITY)


def fill(path: Path, parts: int) -> None:
    """An unfinished artifact with so many parts, without waiting for the disk."""
    with place(path).writing():
        pass
    (path / "parts").mkdir(exist_ok=True)
    digest = sha256_bytes(DATA)
    sums = {
        f"latent_{name}": [0.1234567891234] * CHANNELS for name in ("mean", "square", "variance")
    }
    about = {"split": "train", "documents": 1, "bytes": 1, "latent_positions": 1} | sums
    for index in range(parts):
        file = f"parts/{index:05d}.parquet"
        record = PartRecord(
            index=index, file=file, rows=1, tokens=1, bytes=len(DATA), sha256=digest,
            statistics=about | {ARTIFACT: IDENTITY.fingerprint},
        )  # fmt: skip
        (path / file).write_bytes(DATA)
        (path / record_name(index)).write_bytes(signed_json(record))


def resume(path: Path, parts: int) -> int:
    """Go on with the unfinished artifact and complete it; how many parts were missing."""
    with place(path).writing() as writer:
        missing = [index for index in range(parts) if index not in writer.parts]
        for index in missing:
            with writer.part(index) as part:
                part.path.write_bytes(DATA)
                part.rows = part.tokens = 1
        writer.finish({})
    return len(missing)


STEPS: dict[str, Callable[[Path, int], object]] = {
    "fill": fill,
    "list": lambda path, parts: len(recorded_indices(path)),
    "resume": resume,
    "open": lambda path, parts: Artifact.open(path).part_count,
    "records": lambda path, parts: len(Artifact.open(path).parts),
    "up to date": lambda path, parts: place(path).up_to_date,
    "verify": lambda path, parts: len(verify(path).findings),
}


def step(name: str, path: Path, parts: int) -> dict[str, Any]:
    """One step in a process of its own: its result, seconds and peak memory in MB."""
    command = [sys.executable, __file__, "--step", name, "--at", str(path), "--parts", str(parts)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def commit_seconds(folder: Path) -> float:
    """Of a shard, under the lock, to add a part: the median of a few."""
    out = folder / "commits"
    with place(out).writing():
        pass
    taken = []
    for index in range(30):
        begun = time.perf_counter()
        with write_part(out, index, IDENTITY, shared=True) as part:
            part.path.write_bytes(DATA)
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2]


def waits(workers: int, parts: int, work: float, hold: float) -> float:
    """Share of their time that workers wait for the lock, which each takes to add a part.

    A part takes about `work` seconds, its commit `hold` under the lock. Who finds the lock taken looks again
    POLL_SECONDS later, as `locked` does.
    """
    source = random.Random(0)
    queue = [(work * source.uniform(0, 1), worker) for worker in range(workers)]
    heapq.heapify(queue)
    now = free = waited = 0.0
    while parts:
        now, worker = heapq.heappop(queue)
        if now < free:
            waited += POLL_SECONDS
            heapq.heappush(queue, (now + POLL_SECONDS, worker))
            continue
        free, parts = now + hold, parts - 1
        heapq.heappush(queue, (free + work * source.uniform(0.8, 1.2), worker))
    return min(waited / (workers * now), 1.0)


def plan(found: dict[str, Any], asked: argparse.Namespace, part_bytes: float) -> dict[str, float]:
    """What follows for chunks of so many bytes of text, each of which becomes two parts."""
    parts = 2 * asked.text / part_bytes
    each = {name: one["seconds"] / found["parts"] for name, one in found["steps"].items()}
    work = part_bytes / asked.rate / 2
    lock = waits(asked.workers, int(min(parts, 100 * asked.workers)), work, found["commit"])
    busy = asked.text / asked.rate / asked.workers
    return {
        "parts": parts,
        "manifest, MB": parts * found["manifest_bytes_a_part"] / 1e6,
        "a shard lists, s": 2 * parts * each["list"],
        "hours, reading aside": max(busy / (1 - lock), parts * found["commit"]) / 3600,
        "share of it waiting for the lock": lock,
        "last run, h": parts * each["resume"] / 3600,
        "open, s": parts * each["open"],
        "open, MB": parts * found["open_mb_a_part"],
        "verify, h of CPU": parts * each["verify"] / 3600,
    }


def main() -> None:
    """Measure, and print the constants and the plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--text", type=float, default=10e12, help="bytes")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--part-bytes", type=float, default=4 << 20)
    parser.add_argument(
        "--rate", type=float, default=4e6, help="tokenized bytes a second and worker"
    )
    parser.add_argument("--survey-rate", type=float, default=50e6, help="surveyed bytes a second")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        idle, begun = peak_memory(), time.process_time()
        result = STEPS[asked.step](asked.at, asked.parts)
        seconds, peak = time.process_time() - begun, peak_memory()
        print(json.dumps({"result": result, "seconds": seconds, "mb": (peak - idle) / 1e6}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        steps = {name: step(name, path, asked.parts) for name in STEPS}
        size = (path / "manifest.json").stat().st_size
        found = {
            "parts": asked.parts,
            "steps": steps,
            "commit": commit_seconds(Path(folder)),
            "manifest_bytes_a_part": size / asked.parts,
            "open_mb_a_part": steps["open"]["mb"] / asked.parts,
        }
    sizes = [mb << 20 for mb in PART_MEGABYTES]
    plans = {f"{size >> 20} MiB": plan(found, asked, size) for size in sizes}
    if asked.json:
        print(json.dumps({"constants": found, "plans": plans}))
        return
    print("| step | microseconds a part | MB |\n|---|---|---|")
    for name, one in found["steps"].items():
        print(f"| {name} | {one['seconds'] / asked.parts * 1e6:.0f} | {one['mb']:.0f} |")
    print(f"\ncommit of a part: {found['commit'] * 1e3:.1f} ms", end="; ")
    print(f"manifest: {found['manifest_bytes_a_part']:.0f} bytes a part\n")
    print(f"| text of a chunk | {' | '.join(plans)} |\n{'|---' * (1 + len(plans))}|")
    for name in next(iter(plans.values())):
        values = (
            f"{one[name]:,.0f}" if one[name] >= 100 else f"{one[name]:.3g}"
            for one in plans.values()
        )
        print(f"| {name} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()
