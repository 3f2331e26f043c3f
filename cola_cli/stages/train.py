"""What all training stages share: set-up of the machine, the run, the weights at its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cola_cli.artifacts import Artifact, Output, Writer
from cola_cli.artifacts.artifact import METRICS
from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS, remove_all
from cola_cli.corpus.sequences import Sequences
from cola_cli.cost.training import Cost
from cola_cli.machine.processes import World, joined
from cola_cli.machine.threads import describe_environment, prepare_torch
from cola_cli.reporting import Reporter, Silent
from cola_cli.settings.training import Optimizer, Train
from cola_cli.stages.outcome import Outcome
from cola_cli.training import checkpoints
from cola_cli.training.loop import Training
from cola_cli.training.metrics import TIMES, Metrics
from cola_cli.training.objectives.objective import Objective
from cola_cli.weights.artifact import write_network
from cola_cli.weights.configs import network_files


@dataclass(frozen=True)
class Networks:
    """An objective, the networks to save by name with their configs, and what to do before saving."""

    objective: Objective
    saved: dict[str, tuple[nn.Module, Any]]
    finish: Callable[[], None] = lambda: None


def run_training(
    output: Output,
    source: Artifact,
    networks: Callable[[], Networks],
    train: Train,
    optim: Optimizer,
    reporter: Reporter,
    device: str,
    threads: int | None,
    trained: tuple[str, ...],
    copied: tuple[str, ...],
    cost: Cost,
    keep: dict[str, Any],
) -> Outcome:
    """Train on the sequences of `source` and commit the artifact.

    `trained` names the networks that the output holds, `copied` the files of `source` that it holds too;
    `keep` are statistics to carry along.
    """
    import torch

    # Bytes depend on the number of threads: an interrupted run goes on with the number it began with.
    chosen = prepare_torch(threads, output.recorded_environment.get("threads"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    reporter.note(str(chosen))
    with joined(device) as world, ExitStack() as stack:
        environment = describe_environment(chosen) | {"device": str(world.device)}
        writer = stack.enter_context(output.writing(environment)) if world.leads else None
        world.wait()
        files = (METRICS, *network_files(*trained))
        whole = writer is not None and writer.kept.keys() >= set(files)
        if not world.largest(int(whole))[0]:
            if writer is not None:
                writer.discard(*files)
            _train(output.path, source, networks, train, optim, reporter, world, writer, cost)
        world.wait()
        if writer is None:
            return Outcome(output.path, True)
        if not whole:
            writer.keep(*files)  # a run that is killed from here on need not train again
        for name in copied:
            writer.write(name, source.file(name).read_bytes())
        remove_all(output.path / CHECKPOINTS)
        statistics = {"parameters": cost.parameters} | keep | _figures(output.path)
        writer.finish(statistics)
        return Outcome(output.path, True, statistics)


def _train(
    path: Path,
    source: Artifact,
    networks: Callable[[], Networks],
    train: Train,
    optim: Optimizer,
    reporter: Reporter,
    world: World,
    writer: Writer | None,
    cost: Cost,
) -> None:
    import torch

    torch.manual_seed(train.seed)
    made = networks()
    training = Training(
        made.objective,
        train,
        optim,
        Sequences(source, "train"),
        Sequences(source, "validation"),
        path,
        world,
        reporter if world.leads else Silent(),
        cost.flops,
    )
    training.run()
    training.average.replace()
    made.finish()
    for name, (network, config) in made.saved.items():
        state = checkpoints.whole(network.state_dict(), world.leads)
        if writer is not None:
            write_network(writer, name, state, config)


def _figures(path: Path) -> dict[str, Any]:
    """The newest figures of the metrics, but for times."""
    metrics = Metrics(path / METRICS)
    metrics.read()
    names = sorted({name for row in metrics.rows for name in row} - {*TIMES, "step"})
    return {"steps": metrics.rows[-1]["step"]} | {name: metrics.last(name) for name in names}
