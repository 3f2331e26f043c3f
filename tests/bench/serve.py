"""Time the server under load: many streaming clients against `cola sample` on the same prompts.

    python tests/bench/serve.py [MODEL] [--json] [--clients 64] [--new 64] [--rounds 3] [--requests 0]

MODEL is the demo model by default. Clients and `cola sample` take turns, each with all of the machine, and
must get the same texts. `throughput` is the tokens a second of the clients over those of one batch, the best
round of each; `first_block` the seconds until one client has its first block over those of `cola sample`;
`work` the processor's seconds of the server over those of the batches, which busy neighbours hardly change.
With --requests so many short requests follow, and `memory` tells the server's resident bytes before and after
them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from cola_cli.machine import threads

THREADS = threads.prepare_torch()

import httpx

from cola_cli.reporting import Silent
from cola_cli.sampling.prompts import given_prompts
from cola_cli.settings import resolve
from cola_cli.settings.sample import SampleSettings
from cola_cli.stages.answers import open_model, sample_stream
from cola_cli.stages.sample import stored_settings
from cola_cli.weights.names import find_model

WORDS = [
    "Tom was a brave sailor",
    "Once upon a time there was",
    "Anna saw a ship and",
    "The king had",
]
WARM = 500  # requests before memory is looked at


async def stream(port: int, body: dict[str, Any]) -> tuple[str, float]:
    """The text of a streamed completion, and the seconds until its first block. Little work for a client."""
    data = json.dumps(body | {"stream": True}).encode()
    started, first, text = time.perf_counter(), 0.0, ""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    writer.write(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n".encode() + data)
    assert b" 200 " in await reader.readline()
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            break
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - started
            text += json.loads(line[6:])["choices"][0]["text"]
    writer.close()
    return text, first


async def together(port: int, bodies: list[dict[str, Any]]) -> tuple[list[str], float, float]:
    """The texts of clients that ask at once, the seconds until all are served, and until the first block."""
    started = time.perf_counter()
    found = await asyncio.gather(*[stream(port, body) for body in bodies])
    return [text for text, _ in found], time.perf_counter() - started, found[0][1]


async def many(url: str, count: int, clients: int) -> None:
    """So many short requests, from clients that each ask one after another."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(own: range) -> None:
            for seed in own:
                body = {"prompt": WORDS[seed % 4], "max_tokens": 4, "steps": 1, "seed": seed}
                (await client.post("/v1/completions", json=body)).raise_for_status()

        await asyncio.gather(*[ask(range(n, count, clients)) for n in range(clients)])


def processor_seconds(process: int) -> float:
    """The processor's time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(process: int) -> int:
    """Bytes that a process holds."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


class Sampling:
    """`cola sample` on a model that is loaded already."""

    def __init__(self, path: Path, new: int) -> None:
        settings = resolve(SampleSettings, "sample", recorded=stored_settings(path))
        self._settings = settings.model_copy(update={"max_new_tokens": new})
        self._model = open_model(path, settings, "cpu")

    def run(self, prompts: list[str], batch: int) -> tuple[list[str], int, float, float]:
        """Texts, tokens, seconds, and seconds until the first block."""
        settings = self._settings.model_copy(update={"batch_size": batch})
        texts, tokens, first, started = [""] * len(prompts), 0, 0.0, time.perf_counter()
        numbered = enumerate(given_prompts(prompts))
        for one in sample_stream(self._model, numbered, settings, Silent()):
            first = first or time.perf_counter() - started
            if one.finish != "running":
                texts[one.item], tokens = one.text, tokens + one.tokens
        return texts, tokens, time.perf_counter() - started, first


def measure(url: str, port: int, process: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that is measured, in turns."""
    sampling = Sampling(find_model(arguments.model), arguments.new)
    count = arguments.clients
    prompts = [f"{WORDS[n % 4]}{' and' * (n % 3)}" for n in range(count)]
    bodies = [
        {"prompt": prompt, "item": item, "max_tokens": arguments.new}
        for item, prompt in enumerate(prompts)
    ]
    served, batch, first_served, first_alone, tokens = [], [], [], [], 0
    work = [0.0, 0.0]
    for _ in range(arguments.rounds + 1):
        before = time.process_time()
        expected, tokens, seconds, _ = sampling.run(prompts, count)
        work[0] += time.process_time() - before
        batch.append(seconds)
        before = processor_seconds(process)
        texts, seconds, _ = asyncio.run(together(port, bodies))
        work[1] += processor_seconds(process) - before
        assert texts == expected, "a client got another text than `cola sample` gives"
        served.append(seconds)
        for _ in range(3):
            first_alone.append(sampling.run(prompts[:1], 1)[3])
            first_served.append(asyncio.run(together(port, bodies[:1]))[2])
    best, alone = min(served[1:]), min(batch[1:])  # the first round warms up
    found: dict[str, Any] = {
        "throughput": round(alone / best, 3),
        "first_block": round(min(first_served[3:]) / min(first_alone[3:]), 3),
        "work": round(work[1] / work[0], 3),
    }
    print(
        f"{count} clients: {tokens / best:.1f} tokens/s; one batch: {tokens / alone:.1f}; {found}",
        flush=True,
    )
    if arguments.requests:
        asyncio.run(many(url, WARM, count))
        before = resident(process)
        asyncio.run(many(url, arguments.requests, count))
        found["memory"] = [before, resident(process)]
        found["requests"] = arguments.requests
        print(
            f"memory after {WARM} requests {before >> 20} MiB, after {arguments.requests:,} more"
            f" {found['memory'][1] >> 20} MiB"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=0, help="for the memory")
    arguments = parser.parse_args()
    print(THREADS)
    code = "from cola_cli.cli.main import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "serve",
        arguments.model,
        "--port",
        "0",
        "--json",
        "--quiet",
    ]
    command += ["--batch-size", str(arguments.clients)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            found = measure(url, int(url.rpartition(":")[2]), server.pid, arguments)
        finally:
            server.terminate()
    assert server.returncode == 0
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
