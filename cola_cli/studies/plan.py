"""From a study to its runs: settings resolved, sizes and operations worked out. Computes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cola_cli.artifacts.files import sha256_text
from cola_cli.artifacts.manifest import canonical_json, read_manifest
from cola_cli.artifacts.reading import reason
from cola_cli.cost import training as flops
from cola_cli.errors import UsageError
from cola_cli.models.config import PriorConfig, Shape, TextVAEConfig, TransformerConfig
from cola_cli.settings import Settings, nearest, resolve, result_settings
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.evaluate import EvaluateSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.sample import SampleSettings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.settings.vae import VAESettings
from cola_cli.stages import train_baseline
from cola_cli.studies.commands import ANSWERS, CLOZE, Compute, Run, Step, source_of
from cola_cli.studies.settings import Line, Point, Study, Sweep, Tree, flattened, merged

KEY_LENGTH = 10  # hexadecimal digits of a directory's name
BASELINES: dict[str, train_baseline.Baseline] = {"ar": "autoregressive", "llada": "llada"}

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

    def _tokens(self) -> Step:
        common = self.study.study
        if not common.corpus:
            raise UsageError(
                "the study names no corpus.", "Set corpus under [study], or give --corpus."
            )
        given = {"corpus": list(common.corpus), "tokenizer": common.tokenizer}
        settings, assignments = self._resolved(TokenizeSettings, "tokenize")
        return self._step("tokenize", {}, settings, assignments, given)

    def _trained(self, tokens: Step) -> tuple[Step, Compute]:
        if self.line.model in BASELINES:
            return self._baseline(tokens, BASELINES[self.line.model])
        return self._prior(tokens)

    def _prior(self, tokens: Step) -> tuple[Step, Compute]:
        vae_settings, assignments = self._resolved(VAESettings, "vae")
        vae = self._step("train vae", {"tokens": tokens}, vae_settings, assignments)
        encoding, assignments = self._resolved(EncodeSettings, "encode")
        latents = self._step("encode", {"tokens": tokens, "vae": vae}, encoding, assignments)

        length = _seq_len(tokens)
        vae_shape = self._possible(
            TextVAEConfig, "vae.model", vae_settings.model, vocab_size=_vocabulary(tokens)
        )
        seeds = [f"train.seed={self.seed}", f"train.data_seed={self.seed}"]
        further = {"mode": self.line.model}

        def resolved(steps: int | None = None) -> tuple[PriorSettings, tuple[str, ...]]:
            length_of_run = [] if steps is None else [f"train.steps={steps}"]
            return self._resolved(PriorSettings, "prior", [*seeds, *length_of_run], further)

        settings, assignments = resolved()
        shape = self._possible(
            PriorConfig, "prior.model", settings.model, latent_dim=vae_shape.latent_dim
        )
        a_step = flops.prior_cost(shape, vae_shape, settings, length).flops
        parameters = shape.parameter_count()
        steps = self._steps(
            settings.train.steps, settings.train.batch_size * length, parameters, a_step
        )
        if steps != settings.train.steps:
            settings, assignments = resolved(steps)
        prior = self._step("train prior", {"latents": latents}, settings, assignments)
        count = settings.train.batch_size * length * steps
        stage_1 = flops.text_vae_cost(vae_shape, vae_settings, length).flops
        stage_1 *= vae_settings.train.steps
        compute = Compute(
            parameters=parameters,
            all_parameters=parameters + vae_shape.parameter_count(),
            steps=steps,
            tokens=count,
            flops=a_step * steps,
            earlier_flops=stage_1 + flops.text_vae_encoding(vae_shape, count / length, length),
            sampling=self._sampling(length, "cola_sampling", vae_shape, shape),
        )
        return prior, compute

    def _baseline(self, tokens: Step, kind: train_baseline.Baseline) -> tuple[Step, Compute]:
        recorded, inputs = None, {"tokens": tokens}
        seeds = [f"train.seed={self.seed}", f"train.data_seed={self.seed}"]
        if self.line.match is not None:
            prior = self._partner()._trained(tokens)[0]
            vae = prior.inputs["latents"].inputs["vae"]
            shape = self._possible(
                PriorConfig,
                "prior.model",
                prior.settings.model,
                latent_dim=vae.settings.model.latent_dim,
            )
            recorded = (str(prior.path), train_baseline.matched_to(shape, prior.settings))
            inputs["match"] = prior
            seeds = []

        def resolved(steps: int | None = None) -> tuple[BaselineSettings, tuple[str, ...]]:
            length_of_run = [] if steps is None else [f"train.steps={steps}"]
            return self._resolved(
                BaselineSettings, "baseline", [*seeds, *length_of_run], recorded=recorded
            )

        settings, assignments = resolved()
        length = _seq_len(tokens)
        network = self._possible(
            TransformerConfig,
            "baseline.model",
            settings.model,
            vocab_size=_vocabulary(tokens),
            causal=kind == "autoregressive",
        )
        a_step = train_baseline.training_cost(kind, network, settings.train, length).flops
        parameters = network.core_parameter_count()
        batch = settings.train.batch_size * length
        # a share is already in the steps of the prior that this one is matched to
        matched = self.line.match is not None
        steps = self._steps(settings.train.steps, batch, parameters, a_step, matched)
        if steps != settings.train.steps:
            settings, assignments = resolved(steps)
        stage = train_baseline.STAGES[kind]
        name = "autoregressive_sampling" if network.causal else "masked_diffusion_sampling"
        count = batch * steps
        compute = Compute(
            parameters=parameters,
            all_parameters=network.parameter_count(),
            steps=steps,
            tokens=count,
            flops=a_step * steps,
            earlier_flops=0.0,
            sampling=self._sampling(length, name, network),
        )
        return self._step(stage, inputs, settings, assignments), compute

    def _sampling(self, length: int, name: str, *shapes: Any) -> Callable[[], float]:
        """Operations a new token, behind a prompt that leaves room for no more in a training sequence."""
        settings, _ = self._resolved(SampleSettings, "sample")
        new = min(settings.max_new_tokens, length // 2)

        def count() -> float:
            from cola_cli.cost import sampling as flops

            return getattr(flops, name)(*shapes, settings.options(()), length - new, new) / new

        return count

    def _partner(self) -> _Planner:
        """The planner of the run that this one is matched to."""
        lines = {line.name: line for line in self.sweep.lines if line.model in ("frozen", "joint")}
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
        self, trained: Step, tokens: Step, cloze: Step
    ) -> tuple[Step | None, dict[str, Step]]:
        common = self.study.study
        figures: dict[str, Step] = {}
        samples: Step | None = None
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

    def _answers(self, trained: Step, cloze: Step, metric: str) -> Step:
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

    def _judge(self, tokens: Step) -> Step:
        assert self.study.judge is not None
        own = tuple(_assignments(flattened(self.study.judge)))
        settings = self._read(BaselineSettings, "baseline", own)
        return self._step("train ar", {"tokens": tokens}, settings, own)

    # settings

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

    def _possible(self, shape: Any, table: str, model: Shape, **further: Any) -> Any:
        try:
            return shape(**model.model_dump(), **further)
        except ValueError as error:
            raise UsageError(
                f"{self.name}: {table}: {reason(error)}.", "Choose other sizes."
            ) from error

    def _steps(
        self, steps: int, batch: int, parameters: int, a_step: float, shared: bool = False
    ) -> int:
        """The steps of the run that the point asks for; `batch` in tokens."""
        point = self.point
        if point.flops is not None:
            return max(1, round(point.flops / a_step))
        if point.paper_flops is not None:
            return max(1, round(point.paper_flops / (6.0 * parameters * batch)))
        if point.share is not None and not shared:
            return max(1, round(point.share * steps))
        return steps

    def _x(self, trained: Step, samples: Step | None, compute: Compute) -> float | None:
        """The point's place on the sweep's axis."""
        name = self.sweep.x
        if hasattr(compute, name):
            return float(getattr(compute, name))
        value = flattened(self.tree).get(name)
        return float(value) if isinstance(value, int | float) else None

    def _step(
        self,
        stage: str,
        inputs: dict[str, Step],
        settings: Settings | None = None,
        assignments: tuple[str, ...] = (),
        given: dict[str, Any] | None = None,
    ) -> Step:
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
        return Step(stage, path, key, settings, assignments, inputs, given or {}, preset)


def _assignments(given: dict[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        yield f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def _seq_len(tokens: Step) -> int:
    return int(tokens.settings.seq_len)


def _vocabulary(tokens: Step) -> int:
    """Entries of the vocabulary: as found where the tokens are there, as asked for before."""
    if tokens.done:
        return int(read_manifest(tokens.path).statistics["vocab_size"])
    if tokens.given["tokenizer"]:
        from cola_cli.corpus.tokenizer import load_tokenizer

        return load_tokenizer(Path(tokens.given["tokenizer"])).vocab_size
    return int(tokens.settings.vocab_size)
