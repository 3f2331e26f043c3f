"""Stage `sample`: prompts to continuations, streamed or as an artifact that resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.artifacts import PartRecord
from cola_cli.artifacts.files import sha256_text
from cola_cli.artifacts.kinds import Samples, SamplesPart, SamplesStatistics, TrainedModel
from cola_cli.artifacts.origin import published
from cola_cli.artifacts.rows import artifact_rows
from cola_cli.errors import InputError
from cola_cli.families import FAMILIES, TokenModel, commands, token_model
from cola_cli.sampling.prompts import Prompt, not_empty
from cola_cli.settings.sample import SampleSettings
from cola_cli.stages.answers import MakeRow, Sample, encoded_prompt, make_answers
from cola_cli.stages.run import Outcome, Run, open_output
from cola_cli.stages.shards import WHOLE, Shard
from cola_cli.weights.folder import open_model_folder

if TYPE_CHECKING:
    from cola_cli.api import LanguageModel

STAGE = "sample"
DEMO_PROMPT = "Tom was a brave sailor who"  # of the demo model, where none is given


def stored_settings(model: Path) -> tuple[str, dict[str, Any]]:
    """The settings of sampling that a model was stored with, and their source; flags and files go before.

    Raises InputError where there is no model.
    """
    return f"{published(model) or model}, stored with the model", open_model_folder(model).sampling


def sample_to_artifact(
    model_path: Path,
    prompts: list[Prompt],
    output_path: Path,
    settings: SampleSettings,
    run: Run | None = None,
    shard: Shard = WHOLE,
) -> Outcome:
    """Continue all prompts into a samples artifact, going on after the parts an earlier run finished.

    With `shard` (i, n) only the parts with index = i modulo n are made, beside other processes that make
    theirs; a run without it makes what is missing and commits the artifact.
    """
    run = run or Run()
    prompts = list(not_empty(prompts))
    numbered = [[prompt.id, prompt.text] for prompt in prompts]
    inputs = {
        "model": model_fingerprint(model_path),
        "prompts": sha256_text(json.dumps(numbered)),
    }
    output = open_output(output_path, "samples", STAGE, settings, inputs, run, (model_path,))

    def prepare(model: LanguageModel) -> tuple[list[Prompt], MakeRow]:
        for prompt in prompts:  # a wrong one is told before an hour of work
            encoded_prompt(model, prompt)
        return prompts, Sample.row

    def statistics(parts: list[PartRecord]) -> dict[str, Any]:
        return SamplesStatistics(
            prompts=len(prompts),
            tokens=sum(part.tokens for part in parts),
            stopped=sum(SamplesPart.of(part.statistics, output.place).stopped for part in parts),
        ).model_dump()

    progress = "sample", "prompts"
    return make_answers(
        output, model_path, settings, run, shard, progress, prepare, statistics, _stopped
    )


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a samples artifact, in the order of its prompts."""
    return artifact_rows(Samples.open(path))


def _stopped(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of a part: the samples that ended by themselves."""
    return {"stopped": sum(row["finish"] == "stop" for row in rows)}


def model_fingerprint(path: Path) -> str:
    """What identifies a model: its artifact's fingerprint, or the digests of a checkpoint's files."""
    folder = open_model_folder(path)
    if folder.artifact is not None:
        kind = folder.artifact.manifest.kind
        if kind not in FAMILIES or not FAMILIES[kind].writes:
            raise InputError(
                f"{path} is an artifact of kind {kind}, but a model is needed here.",
                f"Name the output of {commands()}.",
            )
    return folder.fingerprint()


def plan_sampling(
    path: Path, settings: SampleSettings, prompts: list[Prompt], device: str = "auto"
) -> dict[str, int]:
    """Parameters, passes of the prior a block, and bytes of weights, caches and workspace.

    Loads no weights. Memory is for these prompts, as many at a time as the settings say.
    """
    from cola_cli.cost.sampling import Load, cache_bytes, workspace_bytes
    from cola_cli.flow.solvers import chosen_grid, evaluation_times
    from cola_cli.machine.processes import pick_device

    folder = open_model_folder(path)
    if folder.artifact is not None and (model := token_model(folder.artifact.manifest.kind)):
        return _plan_token_model(model, folder.artifact, settings)
    vae, prior = folder.configs()
    tokenizer = folder.tokenizer()
    chosen = pick_device(device)
    width = 2 if settings.dtype == "bfloat16" else 4
    grid = chosen_grid(settings.steps, settings.grid)
    evaluations = len(evaluation_times(grid, settings.solver))
    lengths = [len(tokenizer.encode(prompt.text)) for prompt in prompts] if tokenizer else []
    load = Load(
        rows=min(settings.batch_size, len(prompts)) or settings.batch_size,
        prompt=max(lengths, default=folder.context or 512),
        new=settings.max_new_tokens,
        evaluations=evaluations,
        width=width,
        packed=width == 4 and chosen.type == "cpu",
        static=chosen.type == "cuda",
    )
    return {
        "parameters": prior.parameter_count() + vae.parameter_count(),
        "weight_bytes": width * (prior.parameter_count() + vae.parameter_count()),
        "prior_passes_per_block": evaluations,
        "tokens_per_block": prior.block_size * vae.patch_size,
        "cache_bytes": cache_bytes(vae, prior, load),
        "workspace_bytes": workspace_bytes(vae, prior, load),
    }


def _plan_token_model(
    model: TokenModel, artifact: TrainedModel, settings: SampleSettings
) -> dict[str, int]:
    config = model.read_config(artifact)
    width = 2 if settings.dtype == "bfloat16" else 4
    positions = (artifact.statistics.seq_len or 0) + settings.max_new_tokens
    return {
        "parameters": config.parameter_count(),
        "weight_bytes": width * config.parameter_count(),
        "passes": model.passes(settings) or settings.max_new_tokens,
        "cache_bytes": width * settings.batch_size * positions * model.cached(config),
    }
