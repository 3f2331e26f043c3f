"""How long training waits for latents in an object store, whose requests take longer than those to a disk.

    python tests/bench/store.py [--latency 0.1] [--steps 100] [--stories 10000] [--part-bytes 400000] [--json]

A prior of `tiny` is trained on the same latents on a disk and in a store that speaks S3 on this machine, each
request later by --latency seconds, with an empty cache. `waiting` is the share of the steps' time spent
waiting for rows, in the steps from 20 on (the first rows have to be waited for), `begun` the seconds of the
first step. Needs moto, flask-cors and obstore.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.stores.conftest import Shelf

COLA = [sys.executable, "-m", "cola_cli"]
WARM = 20
SIZES = ("--preset", "tiny", "--set", "train.log_every=1", "--device", "cpu")


def cola(*arguments: object, environment: dict[str, str] | None = None) -> None:
    """Run `cola` to its end."""
    command = [*COLA, *map(str, arguments), "--quiet"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--stories", type=int, default=10_000)
    parser.add_argument("--part-bytes", type=int, default=400_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = [sys.executable, str(ROOT / "pipelines/stories.py"), str(asked.stories), "1"]
        with open(folder / "stories.txt", "wb") as file:
            subprocess.run(text, stdout=file, check=True)
        sizes = (
            "--preset", "tiny", "--vocab-size", 1024, "--set", f"part_bytes={asked.part_bytes}",
        )  # fmt: skip
        cola("tokenize", folder / "stories.txt", "-o", folder / "tokens", *sizes)
        few = ("--set", "train.steps=2", *SIZES)
        cola("train", "vae", folder / "tokens", "-o", folder / "vae", *few)
        with contextlib.closing(Shelf(folder / "shelf", LATENCY=str(asked.latency))) as shelf:
            # all threads, and a cache that what `encode` wrote is not in
            making = {n: v for n, v in shelf.environment.items() if n != "OMP_NUM_THREADS"}
            training = making | {"COLA_CACHE": str(folder / "empty")}
            for place, at in (("disk", str(folder)), ("store", "s3://shelf/run")):
                latents, prior = f"{at}/latents", folder / f"prior-{place}"
                of_vae = ("--vae", folder / "vae", "-o", latents, "--device", "cpu")
                cola("encode", folder / "tokens", *of_vae, environment=making)
                steps = ("--set", f"train.steps={asked.steps}", *SIZES)
                cola("train", "prior", latents, "-o", prior, *steps, environment=training)
                rows = pq.read_table(prior / "metrics.parquet").to_pylist()
                late = [row for row in rows if row["step"] >= WARM]
                waited = sum(row["reader_share"] * row["seconds"] for row in late)
                found[place] = {
                    "waiting": waited / sum(row["seconds"] for row in late),
                    "begun": rows[0]["seconds"],
                }
    if asked.json:
        print(json.dumps(found))
    else:
        for place, values in found.items():
            print(f"{place:6s}", "  ".join(f"{n} {value:.4f}" for n, value in values.items()))


if __name__ == "__main__":
    main()
