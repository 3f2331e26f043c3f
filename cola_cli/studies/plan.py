"""From a study to its runs and their commands: settings resolved, sizes and operations worked out.

Every artifact of a study lies in one directory under a name made of its kind and a digest of all that decides
its content, so that runs share what they have in common and a changed study finds what it can still use.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cola_cli.artifacts.files import sha256_text
from cola_cli.artifacts.kinds import Tokens
from cola_cli.artifacts.manifest import MANIFEST_NAME, canonical_json, flatten, read_manifest
from cola_cli.cost.sampling import cola_sampling
from cola_cli.cost.training import Cost, text_vae_encoding
from cola_cli.errors import UsageError
from cola_cli.families import AUTOREGRESSIVE, PRIOR, TEXT_VAE, Data, Family, baselines
from cola_cli.settings import TABLES, Settings, nearest, resolve, result_settings
from cola_cli.settings.sample import SamplingOptions
from cola_cli.stages.matching import planned_settings
from cola_cli.stages.train import model_config
from cola_cli.studies.settings import PRIORS, Line, Point, Study, Sweep, Tree, merged

KEY_LENGTH = 10  # hexadecimal digits of a directory's name

# Metrics of `cola eval text`, and the beginnings of further ones.
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
    words: arguments that no other stage has, behind the first of the inputs.
    """

    stage: str
    path: Path
    key: str
    settings: Any = None
    assignments: tuple[str, ...] = ()
    inputs: dict[str, Command] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)  # arguments that are not artifacts
    words: tuple[str, ...] = ()
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
class Trial:
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
    measured: dict[str, Command]  # what measures the model, by its stage

    @property
    def steps(self) -> list[Command]:
        """All commands in an order in which they can be run."""
        ends = [self.trained, *([self.samples] if self.samples else []), *self.measured.values()]
        return _each_once(step for end in ends for step in _ordered(end))


def commands_of(runs: list[Trial]) -> list[Command]:
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


def plan_study(study: Study, folder: Path) -> list[Trial]:
    """Every run of a study whose artifacts lie in `folder`. Raises UsageError for impossible settings."""
    return [
        _Planner(study, folder, sweep, line, place, point, seed).run()
        for sweep in study.sweeps
        for line in sweep.lines
        for place, point in enumerate(sweep.points)
        for seed in study.study.seeds
    ]


@dataclass(frozen=True)
class _Planner:
    """Plans one run."""

    study: Study
    folder: Path
    sweep: Sweep
    line: Line
    place: int
    point: Point
    seed: int

    @property
    def name(self) -> str:
        """Where the run is in the study, for messages."""
        return f"{self.sweep.name}, {self.line.name}, point {self.place + 1}"

    @cached_property
    def tree(self) -> Tree:
        """The settings of the run's stages."""
        return merged(merged(self.study.settings, self.line.settings), self.point.settings)

    def run(self) -> Trial:
        common = self.study.study
        tokens = self._tokens()
        trained, compute = self._trained(tokens)
        given = {"count": common.passages, "context": common.context}
        words = [*_option("--count", common.passages), *_option("--context", common.context)]
        cloze = self._step("eval cloze", {"tokens": tokens}, given=given, words=words)
        samples, measured = self._measured(trained, tokens, cloze)
        return Trial(
            sweep=self.sweep.name,
            line=self.line.name,
            model=self.line.model,
            point=self.place,
            seed=self.seed,
            x=self._x(compute),
            compute=compute,
            trained=trained,
            samples=samples,
            measured=measured,
        )

    # the stages

    def _tokens(self) -> Command:
        common = self.study.study
        if not common.corpus:
            raise UsageError(
                "the study names no corpus.", "Set corpus under [study], or give --corpus."
            )
        given = {"corpus": list(common.corpus), "tokenizer": common.tokenizer}
        settings, assignments = self._resolved("tokenize")
        words = [*common.corpus, *_option("--tokenizer", common.tokenizer)]
        return self._step("tokenize", {}, settings, assignments, given, words)

    def _trained(self, tokens: Command) -> tuple[Command, Compute]:
        if self.line.model in PRIORS:
            return self._prior(tokens)
        (family,) = (one for one in baselines() if one.command == self.line.model)
        return self._baseline(tokens, family)

    def _prior(self, tokens: Command) -> tuple[Command, Compute]:
        vae_settings, assignments = self._resolved(TEXT_VAE.table)
        vae = self._step(TEXT_VAE.stage, {"tokens": tokens}, vae_settings, assignments)
        encoding, assignments = self._resolved("encode")
        inputs, words = {"tokens": tokens, "vae": vae}, _option("--vae", vae.path)
        latents = self._step("encode", inputs, encoding, assignments, words=words)

        data = _data(tokens)
        vae_shape = self._possible(TEXT_VAE, data, vae_settings)
        stage_1 = TEXT_VAE.cost(vae_shape, data, vae_settings).flops * vae_settings.train.steps
        data = replace(data, vae=vae_shape)
        settings, assignments, shape, cost = self._lengthened(
            PRIOR, data, self._seeds(), flags={"mode": self.line.model}
        )
        prior = self._step(PRIOR.stage, {"latents": latents}, settings, assignments)
        rows = settings.train.batch_size * settings.train.steps
        compute = self._compute(
            settings,
            data,
            cost,
            cost.core_parameters + vae_shape.parameter_count(),
            stage_1 + text_vae_encoding(vae_shape, rows, data.length),
            partial(cola_sampling, vae_shape, shape),
        )
        return prior, compute

    def _baseline(self, tokens: Command, family: Family) -> tuple[Command, Compute]:
        inputs, words, data = {"tokens": tokens}, list[str](), _data(tokens)
        if self.line.match is None:
            settings, assignments, shape, cost = self._lengthened(family, data, self._seeds())
        else:
            prior = self._partner()._trained(tokens)[0]
            vae = prior.inputs["latents"].inputs["vae"]
            vae_shape = self._possible(TEXT_VAE, data, vae.settings)
            shape = self._possible(PRIOR, replace(data, vae=vae_shape), prior.settings)
            recorded = (str(prior.path), planned_settings(shape, prior.settings))
            inputs["match"], words = prior, _option("--match", prior.path)
            settings, assignments, shape, cost = self._lengthened(
                family, data, [], recorded=recorded
            )
        assert family.token_model is not None
        flops = partial(family.token_model.flops, shape)
        compute = self._compute(settings, data, cost, cost.parameters, 0.0, flops)
        return self._step(family.stage, inputs, settings, assignments, words=words), compute

    def _compute(
        self,
        settings: Any,
        data: Data,
        cost: Cost,
        all_parameters: int,
        earlier_flops: float,
        sampling: Callable[[SamplingOptions, int, int], float],
    ) -> Compute:
        steps = settings.train.steps
        return Compute(
            parameters=cost.core_parameters,
            all_parameters=all_parameters,
            steps=steps,
            tokens=settings.train.batch_size * steps * data.length,
            flops=cost.flops * steps,
            earlier_flops=earlier_flops,
            sampling=self._sampling(data.length, sampling),
        )

    def _lengthened(
        self,
        family: Family,
        data: Data,
        seeds: list[str],
        flags: dict[str, Any] | None = None,
        recorded: tuple[str, Tree] | None = None,
    ) -> tuple[Any, tuple[str, ...], Any, Cost]:
        """Settings with the steps that the point asks for, their assignments; the shape and its cost."""
        settings, assignments = self._resolved(family.table, seeds, flags, recorded)
        shape = self._possible(family, data, settings)
        cost = family.cost(shape, data, settings)
        batch = settings.train.batch_size * data.length
        # a share is already in the steps of the prior that a baseline is matched to
        steps = self._steps(settings.train.steps, batch, cost, shared=recorded is not None)
        if steps != settings.train.steps:
            further = [*seeds, f"train.steps={steps}"]
            settings, assignments = self._resolved(family.table, further, flags, recorded)
        return settings, assignments, shape, cost

    def _seeds(self) -> list[str]:
        return [f"train.seed={self.seed}", f"train.data_seed={self.seed}"]

    def _sampling(
        self, length: int, flops: Callable[[SamplingOptions, int, int], float]
    ) -> Callable[[], float]:
        """Operations a new token, behind a prompt that leaves room for no more in a training sequence."""
        settings, _ = self._resolved("sample")
        new = min(settings.max_new_tokens, length // 2)
        return lambda: flops(settings.options(()), length - new, new) / new

    def _partner(self) -> _Planner:
        """The planner of the run that this one is matched to."""
        lines = {line.name: line for line in self.sweep.lines if line.model in PRIORS}
        if self.line.match not in lines:
            raise UsageError(
                f"{self.name}: no line of a prior is called {self.line.match!r}.",
                nearest(self.line.match or "", lines),
            )
        return replace(self, line=lines[self.line.match])

    def _measured(
        self, trained: Command, tokens: Command, cloze: Command
    ) -> tuple[Command | None, dict[str, Command]]:
        common = self.study.study
        measured: dict[str, Command] = {}
        samples: Command | None = None
        for metric in common.metrics:
            stage = source_of(metric, common.tasks)
            if stage in measured or stage == "":
                continue
            if stage.startswith(ANSWERS):
                measured[stage] = self._answers(trained, cloze, metric)
                continue
            if samples is None:
                options, assignments = self._resolved("sample", [f"seed={self.seed}"])
                words = _option("--prompts", cloze.path)
                inputs = {"model": trained, "prompts": cloze}
                samples = self._step("sample", inputs, options, assignments, words=words)
            inputs = {"samples": samples, "tokens": tokens}
            words, given = _option("--tokens", tokens.path), dict[str, Any]()
            if stage == "eval text":
                if self.study.judge is not None:
                    inputs["judge"] = self._judge(tokens)
                    words += _option("--judge", inputs["judge"].path)
                else:
                    given["judge"] = common.judge
                    words += _option("--judge", common.judge)
            measured[stage] = self._step(stage, inputs, given=given, words=[*words, "--json"])
        return samples, measured

    def _answers(self, trained: Command, cloze: Command, metric: str) -> Command:
        """The model's answers to the passages, or to the items of a task's file."""
        common = self.study.study
        settings, assignments = self._resolved("eval", [f"seed={self.seed}"])
        inputs = {"model": trained}
        given: dict[str, Any] = {}
        words = ["--task", "lambada", *_option("--data", cloze.path)]
        if metric == CLOZE:
            inputs["data"] = cloze
        else:
            given = {"task": metric, "data": common.tasks[metric], "limit": common.limit}
            words = [word for name, value in given.items() for word in _option(f"--{name}", value)]
        return self._step(ANSWERS, inputs, settings, assignments, given, words)

    def _judge(self, tokens: Command) -> Command:
        assert self.study.judge is not None
        own = tuple(_assignments(flatten(self.study.judge)))
        settings = self._read(AUTOREGRESSIVE.table, own)
        return self._step(AUTOREGRESSIVE.stage, {"tokens": tokens}, settings, own)

    # settings

    def _resolved(
        self,
        table: str,
        further: Iterable[str] = (),
        flags: dict[str, Any] | None = None,
        recorded: tuple[str, Tree] | None = None,
    ) -> tuple[Any, tuple[str, ...]]:
        """The settings of a stage, and the assignments that give them to its command."""
        given = flatten(self.tree.get(table, {})) | (flags or {})
        assignments = (*_assignments(given), *further)
        return self._read(table, assignments, recorded), assignments

    def _read(
        self,
        table: str,
        assignments: tuple[str, ...],
        recorded: tuple[str, Tree] | None = None,
    ) -> Any:
        preset = None if recorded else self.study.study.preset
        model = TABLES[table]
        with self._named():
            return resolve(model, table, preset, None, os.environ, assignments, recorded=recorded)

    def _possible(self, family: Family, data: Data, settings: Any) -> Any:
        with self._named():
            return model_config(family, data, settings)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Settings that are not possible are named with the run that they are of."""
        try:
            yield
        except UsageError as error:
            problem = error.problem.removeprefix("--set: ")
            raise UsageError(f"{self.name}: {problem}", error.remedy) from error

    def _steps(self, steps: int, batch: int, cost: Cost, shared: bool = False) -> int:
        """The steps of the run that the point asks for; `batch` in tokens."""
        point = self.point
        if point.flops is not None:
            return max(1, round(point.flops / cost.flops))
        if point.paper_flops is not None:
            return max(1, round(point.paper_flops / (6.0 * cost.core_parameters * batch)))
        if point.share is not None and not shared:
            return max(1, round(point.share * steps))
        return steps

    def _x(self, compute: Compute) -> float | None:
        """The point's place on the sweep's axis."""
        name = self.sweep.x
        if hasattr(compute, name):
            return float(getattr(compute, name))
        value = flatten(self.tree).get(name)
        return float(value) if isinstance(value, int | float) else None

    def _step(
        self,
        stage: str,
        inputs: dict[str, Command],
        settings: Settings | None = None,
        assignments: tuple[str, ...] = (),
        given: dict[str, Any] | None = None,
        words: Iterable[str] = (),
    ) -> Command:
        decides = {
            "stage": stage,
            "settings": {} if settings is None else result_settings(settings),
            "inputs": {name: step.key for name, step in inputs.items() if name != "match"},
            "given": given or {},
        }
        key = sha256_text(canonical_json(decides).decode())[:KEY_LENGTH]
        kind = stage.rpartition(" ")[2]
        suffix = {"cloze": ".jsonl", "text": ".json", "words": ".json"}.get(kind, "")
        name = {"tokenize": "tokens", "encode": "latents", "sample": "samples", "run": "answers"}
        path = self.folder / f"{name.get(kind, kind)}-{key}{suffix}"
        # what is matched starts from the prior's settings, which a preset would replace
        preset = None if settings is None or "match" in inputs else self.study.study.preset
        own = tuple(words)
        return Command(stage, path, key, settings, assignments, inputs, given or {}, own, preset)


def _option(name: str, value: object) -> list[str]:
    """An option with its value, nothing without one."""
    return [] if value in (None, "") else [name, str(value)]


def _assignments(given: dict[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if value != {}:  # an empty table says nothing
            yield f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def _data(tokens: Command) -> Data:
    return Data(int(tokens.settings.seq_len), _vocabulary(tokens))


def _vocabulary(tokens: Command) -> int:
    """Entries of the vocabulary: as found where the tokens are there, as asked for before."""
    if tokens.done:
        return Tokens.open(tokens.path).statistics.vocab_size
    if tokens.given["tokenizer"]:
        from cola_cli.corpus.tokenizer import load_tokenizer

        return load_tokenizer(Path(tokens.given["tokenizer"])).vocab_size
    return int(tokens.settings.vocab_size)
