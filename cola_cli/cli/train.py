"""cola train: a model of any family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli.options import STAGE, Invocation, command, setting_flags
from cola_cli.families import PRIOR, Family

Tokens = Annotated[Path, typer.Argument(help="A tokens artifact, of `cola tokenize`.")]
Match = Annotated[
    Path | None,
    typer.Option(
        "--match",
        help="A prior to be matched to: width, depth for as many parameters, optimiser, steps, batches.",
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Begin with these weights, of an artifact or a checkpoint in the authors' layout: fine-tuning.",
    ),
]


def command_of(family: Family) -> Any:
    """The command that trains a family."""
    if family is PRIOR:
        return prior
    return _matched(family) if family.token_model is not None else _plain(family)


def _plain(family: Family) -> Any:
    def train(tokens: Tokens, run: Invocation, start: From = None) -> None:
        _train(family, tokens, run, start=start)

    return _named(family, train, f"-o runs/demo/{family.command} --preset tiny")


def _matched(family: Family) -> Any:
    def train(tokens: Tokens, run: Invocation, match: Match = None, start: From = None) -> None:
        _train(family, tokens, run, match, start)

    return _named(family, train, f"-o runs/demo/{family.command} --match runs/demo/prior")


def _named(family: Family, body: Any, example: str) -> Any:
    body.__name__ = family.command
    body.__doc__ = (
        f"{family.summary}\n\nExample: cola {family.stage} runs/demo/{family.reads} {example}"
    )
    return command(*STAGE, table=family.table)(body)


@command(*STAGE, table=PRIOR.table)
@setting_flags("mode", "loss.flow_gradient")
def prior(
    latents: Annotated[Path, typer.Argument(help="A latents artifact, of `cola encode`.")],
    run: Invocation,
    vae: Annotated[
        Path | None, typer.Option("--vae", help="The VAE that made the latents, to confirm it.")
    ] = None,
    start: From = None,
) -> None:
    """Train the block-causal prior by flow matching, the VAE frozen or jointly (stage 2 of the paper).

    Example: cola train prior runs/demo/latents -o runs/demo/prior --preset tiny
    """
    from cola_cli.artifacts.kinds import Latents
    from cola_cli.stages.train import require_maker

    if vae is not None:
        require_maker(Latents.open(latents), vae)
    _train(PRIOR, latents, run, start=start)


@command(*STAGE, table="distill")
@setting_flags("passes")
def distill(
    prior: Annotated[Path, typer.Argument(help="The teacher, a prior artifact.")],
    latents: Annotated[Path, typer.Argument(help="Latents of its VAE, of `cola encode`.")],
    run: Invocation,
) -> None:
    """Distil a prior into a student that needs few passes a block, with the guidance within.

    Example: cola distill runs/demo/prior runs/demo/latents -o runs/demo/student --passes 4
    """
    from cola_cli.settings.distill import settings_of_teacher
    from cola_cli.stages.sample import stored_settings
    from cola_cli.stages.train import student_family

    family = student_family(prior, latents)
    source, stored = stored_settings(prior)
    _train(family, latents, run, recorded=(source, settings_of_teacher(stored)))


def _train(
    family: Family,
    source: Path,
    run: Invocation,
    match: Path | None = None,
    start: Path | None = None,
    recorded: tuple[str, dict[str, Any]] | None = None,
) -> None:
    from cola_cli.stages.matching import match_report, matched_settings
    from cola_cli.stages.start import Start
    from cola_cli.stages.train import plan_training, train, training_cost

    begin = None
    if match is not None:
        recorded = str(match), matched_settings(match)
    if start is not None:
        begin = Start(start, family)
        recorded = str(start), (recorded[1] if recorded else {}) | begin.settings()
    settings = run.settings(recorded)
    matched = match_report(match, training_cost(family, source, settings)) if match else {}
    if run.dry_run:
        run.show_plan(
            settings, plan_training(family, source, settings, run.device, run.threads) | matched
        )
        return
    if matched:
        run.reporter.note(
            f"{settings.model.layers} layers: {matched['core_parameters']:,} parameters between"
            f" embedding and head, {matched['match_ratio']:.1%} of the prior's"
        )
    outcome = train(family, source, run.output, settings, run, begin)

    def describe(made: dict[str, Any]) -> list[str]:
        shown = {name: meaning for name, meaning in family.metrics.items() if name in made}
        lines = [f"  {meaning}: {made[name]:.4f}" for name, meaning in shown.items()]
        return [f"{run.output}: done", *lines]

    run.show_outcome(outcome, describe)
