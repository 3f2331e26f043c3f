"""What a study consists of: runs, and the commands that each of them takes.

Every artifact of a study lies in one directory under a name made of its kind and a digest of all that decides
its content, so that runs share what they have in common and a changed study finds what it can still use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cola_cli.artifacts.manifest import MANIFEST_NAME, read_manifest
from cola_cli.errors import UsageError
from cola_cli.settings import nearest

# Figures of `cola eval text`, and the beginnings of further ones.
FROM_TEXT = ("perplexity", "entropy", "mauve", "memorised")
FROM_TEXT_PREFIXES = ("distinct_", "repeated_")
FROM_WORDS = ("words", "pairs")  # of `cola eval words`
ANSWERS = "eval run"  # with the task behind it: accuracies
CLOZE = "cloze"  # accuracy of `cola eval run` on the held-out passages
FROM_TRAINING = "validation_"  # of the trained model's own statistics


@dataclass(frozen=True)
class Command:
    """One command of a study and the artifact or file at `path` that it makes.

    inputs: what it reads, by name; settings: resolved, `assignments` how they are given to the command.
    """

    stage: str
    path: Path
    key: str
    settings: Any = None
    assignments: tuple[str, ...] = ()
    inputs: dict[str, Command] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)  # arguments that are not artifacts
    preset: str | None = None

    @property
    def done(self) -> bool:
        """Whether what it makes is there."""
        if self.stage in ("eval cloze", "eval text", "eval words"):
            return self.path.exists()
        if not (self.path / MANIFEST_NAME).exists():
            return False
        return read_manifest(self.path).status == "complete"


@dataclass(frozen=True)
class Compute:
    """What training takes. flops: in full, without what came before it (`earlier`: the VAE, the latents).

    parameters: without embeddings and head, as the paper counts; paper_flops: 6 N D.
    """

    parameters: int
    all_parameters: int
    steps: int
    tokens: int
    flops: float
    earlier_flops: float
    sampling: Callable[[], float] = field(compare=False)

    @property
    def total_flops(self) -> float:
        return self.flops + self.earlier_flops

    @property
    def paper_flops(self) -> float:
        return 6.0 * self.parameters * self.tokens

    @property
    def token_flops(self) -> float:
        """Operations of writing a token with the study's sampling, the last ones of a training sequence."""
        return self.sampling()  # imports torch, so only where it is asked for


@dataclass(frozen=True)
class Run:
    """One line at one point with one seed. `x`: the point's place, None where it has no number."""

    sweep: str
    line: str
    model: str
    point: int
    seed: int
    x: float | None
    compute: Compute
    trained: Command
    samples: Command | None
    figures: dict[str, Command]  # by the stage that makes them

    @property
    def steps(self) -> list[Command]:
        """All commands in an order in which they can be run."""
        ends = [self.trained, *([self.samples] if self.samples else []), *self.figures.values()]
        return _each_once(step for end in ends for step in _ordered(end))


def commands_of(runs: list[Run]) -> list[Command]:
    """The commands of all runs, each once, in an order in which they can be run."""
    return _each_once(step for run in runs for step in run.steps)


def _each_once(steps: Iterable[Command]) -> list[Command]:
    found: dict[str, Command] = {}
    for step in steps:
        found.setdefault(step.key, step)
    return list(found.values())


def _ordered(step: Command) -> Iterator[Command]:
    for needed in step.inputs.values():
        yield from _ordered(needed)
    yield step


def source_of(metric: str, tasks: Iterable[str] = ()) -> str:
    """What measures a metric; "" for the trained model's own statistics. Raises UsageError.

    tasks: names of benchmarks that are metrics too.
    """
    if metric in FROM_TEXT or metric.startswith(FROM_TEXT_PREFIXES):
        return "eval text"
    if metric in FROM_WORDS:
        return "eval words"
    if metric == CLOZE or metric in tasks:
        return f"{ANSWERS} {metric}"
    if metric.startswith(FROM_TRAINING):
        return ""
    known = [*FROM_TEXT, *FROM_WORDS, CLOZE, *tasks, "validation_loss", "distinct_2", "repeated_4"]
    raise UsageError(f"there is no metric {metric!r}.", nearest(metric, known))
