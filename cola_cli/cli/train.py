"""cola train: a model of any family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli.options import MODEL, Invocation, command, setting_flags
from cola_cli.cli.options import STAGE as OF_STAGES
from cola_cli.errors import UsageError
from cola_cli.families import PRIOR, Base, Family

STAGE = (*OF_STAGES, "extend", "log", "profile")
SOURCES = {
    "tokens": "A tokens artifact, of `cola tokenize`.",
    "latents": "A latents artifact, of `cola encode`.",
}
Match = Annotated[
    Path | None,
    MODEL,
    typer.Option(
        "--match",
        help="A prior to be matched to: width, depth for as many parameters, optimiser, steps, batches.",
    ),
]
From = Annotated[
    Path | None,
    MODEL,
    typer.Option(
        "--from",
        help="Begin with these weights, of an artifact or a checkpoint in the authors' layout: fine-tuning.",
    ),
]


def command_of(family: Family) -> Any:
    """The command that trains a family."""
    if family is PRIOR:
        return prior
    if family.base is not None:
        return _derived(family, family.base)
    return _matched(family) if family.token_model is not None else _plain(family)


def _plain(family: Family) -> Any:
    def train(source: Path, run: Invocation, start: From = None) -> None:
        _train(family, source, run, start=start)

    return _named(family, train, "--preset tiny")


def _matched(family: Family) -> Any:
    def train(source: Path, run: Invocation, match: Match = None, start: From = None) -> None:
        _train(family, source, run, match, start)

    return _named(family, train, "--match runs/demo/prior")


def _derived(family: Family, base: Base) -> Any:
    def train(origin: Path, source: Path, run: Invocation) -> None:
        from cola_cli.stages.sample import stored_settings
        from cola_cli.stages.train import derived_family

        derived = derived_family(family, origin, source)
        place, stored = stored_settings(origin)
        _train(derived, source, run, recorded=(place, base.recorded(stored)))

    train.__annotations__["origin"] = _argument(base.kind, base.help, MODEL)
    return _named(family, train, "--preset tiny")


def _named(family: Family, body: Any, example: str) -> Any:
    """The command of a family: `body`, with the help, arguments and flags that the family says."""
    body.__name__ = family.command
    inputs = " ".join(f"runs/demo/{kind}" for kind in family.arguments)
    shown = f"cola {family.stage} {inputs} -o runs/demo/{family.command} {example}"
    body.__doc__ = f"{family.summary}\n\nExample: {shown}"
    body.__annotations__["source"] = _argument(family.reads, SOURCES[family.reads])
    return command(*STAGE, table=family.table)(setting_flags(*family.flags)(body))


def _argument(kind: str, help: str, *marks: Any) -> Any:
    return Annotated[Path, *marks, typer.Argument(metavar=kind, help=help)]


@command(*STAGE, table=PRIOR.table)
@setting_flags(*PRIOR.flags)
def prior(
    latents: Annotated[Path, typer.Argument(help=SOURCES["latents"])],
    run: Invocation,
    vae: Annotated[
        Path | None,
        MODEL,
        typer.Option("--vae", help="The VAE that made the latents, to confirm it."),
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


def _train(
    family: Family,
    source: Path,
    run: Invocation,
    match: Path | None = None,
    start: Path | None = None,
    recorded: tuple[str, dict[str, Any]] | None = None,
) -> None:
    from cola_cli.stages.matching import match_report, matched_settings
    from cola_cli.stages.run import recorded_settings
    from cola_cli.stages.start import Start
    from cola_cli.stages.train import plan_training, train, training_cost

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
        run.show_plan(
            settings, plan_training(family, source, settings, run.device, run.threads) | matched
        )
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
