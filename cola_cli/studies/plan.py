"""From a study to its runs: settings resolved, sizes and operations worked out. Computes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cola_cli.artifacts.files import sha256_text
from cola_cli.artifacts.manifest import canonical_json, read_manifest
from cola_cli.cost.sampling import cola_sampling
from cola_cli.cost.training import Cost, text_vae_encoding
from cola_cli.errors import UsageError
from cola_cli.families import AUTOREGRESSIVE, PRIOR, TEXT_VAE, Data, Family, baselines
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.settings import TABLES, Settings, nearest, resolve, result_settings
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.evaluate import EvaluateSettings
from cola_cli.settings.sample import SampleSettings, SamplingOptions
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.matching import planned_settings
from cola_cli.stages.train import model_config
from cola_cli.studies.commands import ANSWERS, CLOZE, Command, Compute, Run, source_of
from cola_cli.studies.settings import PRIORS, Line, Point, Study, Sweep, Tree, flattened, merged

KEY_LENGTH = 10  # hexadecimal digits of a directory's name

_SettingsT = TypeVar("_SettingsT", bound=Settings)


def plan_study(study: Study, folder: Path) -> list[Run]:
    """Every run of a study whose artifacts lie in `folder`. Raises UsageError for impossible settings."""
    return [
        _Planner(study, folder, sweep, line, place, point, seed).run()
        for sweep in study.sweeps
        for line in sweep.lines
        for place, point in enumerate(sweep.points)
        for seed in study.study.seeds
    ]


class _Planner:
    """Plans one run."""

    def __init__(
        self,
        study: Study,
        folder: Path,
        sweep: Sweep,
        line: Line,
        place: int,
        point: Point,
        seed: int,
    ) -> None:
        self.study, self.folder, self.sweep = study, folder, sweep
        self.line, self.place, self.point, self.seed = line, place, point, seed
        self.name = f"{sweep.name}, {line.name}, point {place + 1}"
        self.tree = merged(merged(study.settings, line.settings), point.settings)

    def run(self) -> Run:
        common = self.study.study
        tokens = self._tokens()
        trained, compute = self._trained(tokens)
        cloze = self._step(
            "eval cloze",
            {"tokens": tokens},
            given={"count": common.passages, "context": common.context},
        )
        samples, figures = self._measured(trained, tokens, cloze)
        return Run(
            sweep=self.sweep.name,
            line=self.line.name,
            model=self.line.model,
            point=self.place,
            seed=self.seed,
            x=self._x(trained, samples, compute),
            compute=compute,
            trained=trained,
            samples=samples,
            figures=figures,
        )

    # the stages

    def _tokens(self) -> Command:
        common = self.study.study
        if not common.corpus:
            raise UsageError(
                "the study names no corpus.", "Set corpus under [study], or give --corpus."
            )
        given = {"corpus": list(common.corpus), "tokenizer": common.tokenizer}
        settings, assignments = self._resolved(TokenizeSettings, "tokenize")
        return self._step("tokenize", {}, settings, assignments, given)

    def _trained(self, tokens: Command) -> tuple[Command, Compute]:
        if self.line.model in PRIORS:
            return self._prior(tokens)
        (family,) = (one for one in baselines() if one.command == self.line.model)
        return self._baseline(tokens, family)

    def _prior(self, tokens: Command) -> tuple[Command, Compute]:
        vae_settings, assignments = self._trained_as(TEXT_VAE)
        vae = self._step(TEXT_VAE.stage, {"tokens": tokens}, vae_settings, assignments)
        encoding, assignments = self._resolved(EncodeSettings, "encode")
        latents = self._step("encode", {"tokens": tokens, "vae": vae}, encoding, assignments)

        data = _data(tokens)
        vae_shape = self._possible(TEXT_VAE, data, vae_settings)
        stage_1 = TEXT_VAE.cost(vae_shape, data, vae_settings).flops * vae_settings.train.steps
        data = replace(data, vae=vae_shape)
        seeds = [f"train.seed={self.seed}", f"train.data_seed={self.seed}"]
        further = {"mode": self.line.model}

        def resolved(steps: int | None = None) -> tuple[Any, tuple[str, ...]]:
            length_of_run = [] if steps is None else [f"train.steps={steps}"]
            return self._trained_as(PRIOR, [*seeds, *length_of_run], further)

        settings, assignments = resolved()
        shape = self._possible(PRIOR, data, settings)
        cost = PRIOR.cost(shape, data, settings)
        batch = settings.train.batch_size * data.length
        steps = self._steps(settings.train.steps, batch, cost)
        if steps != settings.train.steps:
            settings, assignments = resolved(steps)
        prior = self._step(PRIOR.stage, {"latents": latents}, settings, assignments)
        rows = settings.train.batch_size * steps
        compute = Compute(
            parameters=cost.core_parameters,
            all_parameters=cost.core_parameters + vae_shape.parameter_count(),
            steps=steps,
            tokens=batch * steps,
            flops=cost.flops * steps,
            earlier_flops=stage_1 + text_vae_encoding(vae_shape, rows, data.length),
            sampling=self._sampling(data.length, _cola_flops, (vae_shape, shape)),
        )
        return prior, compute

    def _baseline(self, tokens: Command, family: Family) -> tuple[Command, Compute]:
        recorded, inputs, data = None, {"tokens": tokens}, _data(tokens)
        seeds = [f"train.seed={self.seed}", f"train.data_seed={self.seed}"]
        if self.line.match is not None:
            prior = self._partner()._trained(tokens)[0]
            vae = prior.inputs["latents"].inputs["vae"]
            vae_shape = self._possible(TEXT_VAE, data, vae.settings)
            shape = self._possible(PRIOR, replace(data, vae=vae_shape), prior.settings)
            recorded = (str(prior.path), planned_settings(shape, prior.settings))
            inputs["match"] = prior
            seeds = []

        def resolved(steps: int | None = None) -> tuple[Any, tuple[str, ...]]:
            length_of_run = [] if steps is None else [f"train.steps={steps}"]
            return self._trained_as(family, [*seeds, *length_of_run], recorded=recorded)

        settings, assignments = resolved()
        shape = self._possible(family, data, settings)
        cost = family.cost(shape, data, settings)
        batch = settings.train.batch_size * data.length
        # a share is already in the steps of the prior that this one is matched to
        matched = self.line.match is not None
        steps = self._steps(settings.train.steps, batch, cost, matched)
        if steps != settings.train.steps:
            settings, assignments = resolved(steps)
        assert family.token_model is not None
        compute = Compute(
            parameters=cost.core_parameters,
            all_parameters=cost.parameters,
            steps=steps,
            tokens=batch * steps,
            flops=cost.flops * steps,
            earlier_flops=0.0,
            sampling=self._sampling(data.length, family.token_model.flops, shape),
        )
        return self._step(family.stage, inputs, settings, assignments), compute

    def _sampling(
        self, length: int, flops: Callable[[Any, SamplingOptions, int, int], float], shape: Any
    ) -> Callable[[], float]:
        """Operations a new token, behind a prompt that leaves room for no more in a training sequence."""
        settings, _ = self._resolved(SampleSettings, "sample")
        new = min(settings.max_new_tokens, length // 2)

        return lambda: flops(shape, settings.options(()), length - new, new) / new

    def _partner(self) -> _Planner:
        """The planner of the run that this one is matched to."""
        lines = {line.name: line for line in self.sweep.lines if line.model in PRIORS}
        if self.line.match not in lines:
            raise UsageError(
                f"{self.name}: there is no prior's line {self.line.match!r} to match.",
                nearest(self.line.match or "", lines),
            )
        line = lines[self.line.match]
        return _Planner(
            self.study, self.folder, self.sweep, line, self.place, self.point, self.seed
        )

    def _measured(
        self, trained: Command, tokens: Command, cloze: Command
    ) -> tuple[Command | None, dict[str, Command]]:
        common = self.study.study
        figures: dict[str, Command] = {}
        samples: Command | None = None
        for metric in common.metrics:
            stage = source_of(metric, common.tasks)
            if stage in figures or stage == "":
                continue
            if stage.startswith(ANSWERS):
                figures[stage] = self._answers(trained, cloze, metric)
                continue
            if samples is None:
                options, assignments = self._resolved(
                    SampleSettings, "sample", [f"seed={self.seed}"]
                )
                samples = self._step(
                    "sample", {"model": trained, "prompts": cloze}, options, assignments
                )
            inputs = {"samples": samples, "tokens": tokens}
            given: dict[str, Any] = {}
            if stage == "eval text":
                if self.study.judge is not None:
                    inputs["judge"] = self._judge(tokens)
                else:
                    given["judge"] = common.judge
            figures[stage] = self._step(stage, inputs, given=given)
        return samples, figures

    def _answers(self, trained: Command, cloze: Command, metric: str) -> Command:
        """The model's answers to the passages, or to the items of a task's file."""
        common = self.study.study
        settings, assignments = self._resolved(EvaluateSettings, "eval", [f"seed={self.seed}"])
        inputs = {"model": trained}
        given: dict[str, Any] = {}
        if metric == CLOZE:
            inputs["data"] = cloze
        else:
            given = {"task": metric, "data": common.tasks[metric], "limit": common.limit}
        return self._step(ANSWERS, inputs, settings, assignments, given)

    def _judge(self, tokens: Command) -> Command:
        assert self.study.judge is not None
        own = tuple(_assignments(flattened(self.study.judge)))
        settings = self._read(TABLES[AUTOREGRESSIVE.table], AUTOREGRESSIVE.table, own)
        return self._step(AUTOREGRESSIVE.stage, {"tokens": tokens}, settings, own)

    # settings

    def _trained_as(
        self,
        family: Family,
        further: list[str] | tuple[str, ...] = (),
        flags: dict[str, Any] | None = None,
        recorded: tuple[str, Tree] | None = None,
    ) -> tuple[Any, tuple[str, ...]]:
        return self._resolved(TABLES[family.table], family.table, further, flags, recorded)

    def _resolved(
        self,
        model: type[_SettingsT],
        table: str,
        further: list[str] | tuple[str, ...] = (),
        flags: dict[str, Any] | None = None,
        recorded: tuple[str, Tree] | None = None,
    ) -> tuple[_SettingsT, tuple[str, ...]]:
        """The settings of a stage, and the assignments that give them to its command."""
        given = flattened(self.tree.get(table, {})) | (flags or {})
        assignments = (*_assignments(given), *further)
        return self._read(model, table, assignments, recorded), assignments

    def _read(
        self,
        model: type[_SettingsT],
        table: str,
        assignments: tuple[str, ...],
        recorded: tuple[str, Tree] | None = None,
    ) -> _SettingsT:
        preset = None if recorded else self.study.study.preset
        try:
            return resolve(model, table, preset, None, os.environ, assignments, recorded=recorded)
        except UsageError as error:
            problem = error.problem.removeprefix("--set: ")
            raise UsageError(f"{self.name}: {problem}", error.remedy) from error

    def _possible(self, family: Family, data: Data, settings: Any) -> Any:
        try:
            return model_config(family, data, settings)
        except UsageError as error:
            raise UsageError(f"{self.name}: {error.problem}", error.remedy) from error

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

    def _x(self, trained: Command, samples: Command | None, compute: Compute) -> float | None:
        """The point's place on the sweep's axis."""
        name = self.sweep.x
        if hasattr(compute, name):
            return float(getattr(compute, name))
        value = flattened(self.tree).get(name)
        return float(value) if isinstance(value, int | float) else None

    def _step(
        self,
        stage: str,
        inputs: dict[str, Command],
        settings: Settings | None = None,
        assignments: tuple[str, ...] = (),
        given: dict[str, Any] | None = None,
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
        return Command(stage, path, key, settings, assignments, inputs, given or {}, preset)


def _assignments(given: dict[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        yield f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def _cola_flops(
    shapes: tuple[TextVAEConfig, PriorConfig], options: SamplingOptions, prompt: int, new: int
) -> float:
    return cola_sampling(*shapes, options, prompt, new)


def _data(tokens: Command) -> Data:
    return Data(int(tokens.settings.seq_len), _vocabulary(tokens))


def _vocabulary(tokens: Command) -> int:
    """Entries of the vocabulary: as found where the tokens are there, as asked for before."""
    if tokens.done:
        return int(read_manifest(tokens.path).statistics["vocab_size"])
    if tokens.given["tokenizer"]:
        from cola_cli.corpus.tokenizer import load_tokenizer

        return load_tokenizer(Path(tokens.given["tokenizer"])).vocab_size
    return int(tokens.settings.vocab_size)
