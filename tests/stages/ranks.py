"""Ranks that do many runs in one start: `python -m tests.stages.ranks PLAN.json` under RANK and WORLD_SIZE.

A plan is a list of runs: arguments of `cola`, a port of its own, and perhaps the step at which every rank
stops as if it were killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.ports import free_port


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


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved on the way out."""


def main(plan: Path) -> None:
    """Do the runs of a plan as one rank of several."""
    import typer.main

    from cola_cli.cli.main import app
    from cola_cli.training.loop import Training

    command, update = typer.main.get_command(app), Training._update
    for run in json.loads(plan.read_text()):
        os.environ["MASTER_PORT"] = str(run["port"])

        def stopping(self: Training, step: Any, stop: int | None = run.get("killed")) -> None:
            if step.number == stop:
                self.saver.wait()
                self.world.wait()
                raise Killed
            update(self, step)

        Training._update = stopping  # type: ignore[method-assign]
        try:
            code = command.main([*run["arguments"], "--quiet"], standalone_mode=False)
        except Killed:
            assert "killed" in run
        else:
            assert "killed" not in run
            assert not code, (run, code)  # without standalone mode an exit code is returned


if __name__ == "__main__":
    main(Path(sys.argv[1]))
