"""cola train: a model of any family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli.options import MODEL, REQUIRED, Invocation, command, parameters, setting_flags
from cola_cli.cli.options import STAGE as OF_STAGES
from cola_cli.errors import UsageError
from cola_cli.families import Family

STAGE = (*OF_STAGES, "extend", "log", "profile")
SOURCES = {
    "tokens": "A tokens artifact, of `cola tokenize`.",
    "latents": "A latents artifact, of `cola encode`.",
}
FURTHER = {
    "vae": ("--vae", "The VAE that made the latents, to confirm it."),
    "match": (
        "--match",
        "A prior to be matched to: width, depth for as many parameters, optimiser, steps, batches.",
    ),
    "start": (
        "--from",
        "Begin with these weights, of an artifact or a checkpoint in the authors' layout: fine-tuning.",
    ),
}


def command_of(family: Family) -> Any:
    """The command that trains a family, with the arguments, flags and help that its record says."""

    def train(run: Invocation, **given: Any) -> None:
        _train(family, run, **given)

    inputs = " ".join(f"runs/demo/{kind}" for kind in family.arguments)
    example = "--match runs/demo/prior" if family.token_model else "--preset tiny"
    shown = f"cola {family.stage} {inputs} -o runs/demo/{family.command} {example}"
    train.__name__, train.__doc__ = family.command, f"{family.summary}\n\nExample: {shown}"
    declared: dict[str, tuple[Any, Any]] = {"run": (Invocation, REQUIRED)}
    if family.base is not None:
        declared["origin"] = _argument(family.base.kind, family.base.help, MODEL)
    declared["source"] = _argument(family.reads, SOURCES[family.reads])
    if family.base is None:
        special = "match" if family.token_model else "vae" if family.reads == "latents" else None
        for name in filter(None, (special, "start")):
            flag, help = FURTHER[name]
            declared[name] = Annotated[Path | None, MODEL, typer.Option(flag, help=help)], None
    train.__signature__ = parameters(declared)  # type: ignore[attr-defined]
    return command(*STAGE, table=family.table)(setting_flags(*family.flags)(train))


def _argument(kind: str, help: str, *marks: Any) -> tuple[Any, Any]:
    argument = typer.Argument(metavar=kind, help=help)
    return Annotated[Path, *marks, argument], REQUIRED


def _train(
    family: Family,
    run: Invocation,
    source: Path,
    origin: Path | None = None,
    vae: Path | None = None,
    match: Path | None = None,
    start: Path | None = None,
) -> None:
    from cola_cli.artifacts.kinds import Latents
    from cola_cli.stages.matching import match_report, matched_settings
    from cola_cli.stages.run import recorded_settings
    from cola_cli.stages.sample import stored_settings
    from cola_cli.stages.start import Start
    from cola_cli.stages.train import (
        derived_family,
        plan_training,
        require_maker,
        train,
        training_cost,
    )

    recorded: tuple[str, dict[str, Any]] | None = None
    if origin is not None and family.base is not None:
        place, stored = stored_settings(origin)
        recorded = place, family.base.recorded(stored)
        family = derived_family(family, origin, source)
    if vae is not None:
        require_maker(Latents.open(source), vae)
    extend = run.given["extend"]
    if extend and run.overwrite:
        raise UsageError("--extend goes on from what --overwrite replaces.", "Give one of them.")
    begin = None
    if match is not None:
        recorded = str(match), matched_settings(match)
    if start is not None:
        begin = Start(start, family)
        recorded = str(start), (recorded[1] if recorded else {}) | begin.settings()
    if extend:
        recorded = recorded_settings(run.output, family.stage) or recorded
    settings = run.settings(recorded)
    matched = match_report(match, training_cost(family, source, settings)) if match else {}
    if run.dry_run:
        plan = plan_training(family, source, settings, run.device, run.threads)
        run.show_plan(settings, plan | matched)
        return
    if matched:
        run.reporter.note(
            f"{settings.model.layers} layers: {matched['core_parameters']:,} parameters between"
            f" embedding and head, {matched['match_ratio']:.1%} of the prior's"
        )
    outcome = train(family, source, run.output, settings, run, begin, extend)

    def describe(made: dict[str, Any]) -> list[str]:
        shown = {name: meaning for name, meaning in family.metrics.items() if name in made}
        lines = [f"  {meaning}: {made[name]:.4f}" for name, meaning in shown.items()]
        return [f"{run.output}: done", *lines]

    run.show_outcome(outcome, describe)
