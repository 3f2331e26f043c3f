"""Ranks that do many runs in one start: `python -m tests.stages.ranks PLAN.json` under RANK and WORLD_SIZE.

A plan is a list of runs: arguments of `cola`, a port of its own, and perhaps the step at which every rank
kills itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from tests.ports import free_port

LEAVING_SECONDS = 1.0  # for all ranks to have left where they met, before the first is killed


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher sets for one rank."""
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(value) for name, value in launcher.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path.cwd()),
    }


def start(
    arguments: list[str], size: int, program: list[str], **variables: str
) -> list[subprocess.Popen[str]]:
    """`program` with these arguments on every rank, without a launcher."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment(rank, size, port) | variables,
        )
        for rank in range(size)
    ]


def run_plan(runs: list[dict[str, Any]], size: int, folder: Path) -> None:
    """Do the runs one after another on so many ranks."""
    plan = folder / f"plan-{size}.json"
    plan.write_text(json.dumps([{"port": free_port()} | run for run in runs]))
    ranks = start([str(plan)], size, ["-m", "tests.stages.ranks"])
    told = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(told)


def main(plan: Path) -> None:
    """Do the runs of a plan as one rank of several, each in a process of its own that has torch imported."""
    import torch  # noqa: F401
    import typer.main

    from cola_cli.cli.main import app

    command = typer.main.get_command(app)
    for run in json.loads(plan.read_text()):
        child = os.fork()
        if not child:
            do(run, command)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == (-signal.SIGKILL if "killed" in run else 0), (run, code)


def do(run: dict[str, Any], command: Any) -> NoReturn:
    """Do one run, and end this process with its exit code."""
    from cola_cli.training.loop import Training

    os.environ["MASTER_PORT"] = str(run["port"])
    update, code = Training._update, 1

    def stopping(self: Training, step: Any) -> None:
        if step.number == run.get("killed"):
            self.saver.wait()
            self.world.wait()
            time.sleep(LEAVING_SECONDS)
            os.kill(os.getpid(), signal.SIGKILL)
        update(self, step)

    Training._update = stopping  # type: ignore[method-assign]
    try:
        code = command.main([*run["arguments"], "--quiet"], standalone_mode=False) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
