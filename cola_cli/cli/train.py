"""cola train: the Text VAE, the prior, and the baselines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cola_cli.cli import options
from cola_cli.cli.console import print_json, print_result, reporter

if TYPE_CHECKING:
    from cola_cli.settings import Settings
    from cola_cli.stages.outcome import Outcome
    from cola_cli.stages.train_baseline import Baseline


def vae(
    tokens: Annotated[Path, typer.Argument(help="A tokens artifact, of `cola tokenize`.")],
    output: options.Output,
    preset: options.Preset = None,
    config: options.Config = None,
    set: options.Set = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train the Text VAE: tokens to continuous latents and back (stage 1 of the paper).

    Example: cola train vae runs/demo/tokens -o runs/demo/vae --preset tiny --set optim.lr=1e-3
    """
    from cola_cli.settings import resolve
    from cola_cli.settings.vae import VAESettings
    from cola_cli.stages.train_vae import plan_vae, train_vae

    settings = resolve(VAESettings, "vae", preset, config, os.environ, set or ())
    if dry_run:
        show_plan("vae", settings, plan_vae(tokens, settings, device), json)
        return
    outcome = train_vae(
        tokens, output, settings, reporter(quiet or not leads()), device, threads, overwrite
    )
    show_outcome(outcome, json, VAE_FIGURES)


def prior(
    latents: Annotated[Path, typer.Argument(help="A latents artifact, of `cola encode`.")],
    output: options.Output,
    mode: Annotated[
        str | None, typer.Option("--mode", help="frozen: the prior alone; joint: the VAE as well.")
    ] = None,
    vae: Annotated[
        Path | None, typer.Option("--vae", help="The VAE that made the latents, to confirm it.")
    ] = None,
    flow_gradient: Annotated[
        str | None,
        typer.Option(
            "--flow-gradient", help="Joint: the flow loss reaches the encoder: detach or latent."
        ),
    ] = None,
    preset: options.Preset = None,
    config: options.Config = None,
    set: options.Set = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train the block-causal prior by flow matching, the VAE frozen or jointly (stage 2 of the paper).

    Example: cola train prior runs/demo/latents -o runs/demo/prior --preset tiny
    """
    from cola_cli.settings import resolve
    from cola_cli.settings.prior import PriorSettings
    from cola_cli.stages.train_prior import plan_prior, train_prior

    flags = {"mode": mode, "loss.flow_gradient": flow_gradient}
    settings = resolve(PriorSettings, "prior", preset, config, os.environ, set or (), flags)
    if dry_run:
        show_plan("prior", settings, plan_prior(latents, settings, device), json)
        return
    outcome = train_prior(
        latents, output, settings, reporter(quiet or not leads()), vae, device, threads, overwrite
    )
    show_outcome(outcome, json, PRIOR_FIGURES)


Match = Annotated[
    Path | None,
    typer.Option(
        "--match",
        help="A prior to be matched to: width, depth for as many parameters, optimiser, steps, batches.",
    ),
]


def ar(
    tokens: Annotated[Path, typer.Argument(help="A tokens artifact, of `cola tokenize`.")],
    output: options.Output,
    match: Match = None,
    preset: options.Preset = None,
    config: options.Config = None,
    set: options.Set = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train the autoregressive baseline: a LLaMA-style transformer that predicts the next token.

    Example: cola train ar runs/demo/tokens -o runs/demo/ar --match runs/demo/prior
    """
    _baseline(
        "autoregressive", tokens, output, match, preset, config, set, device, threads, overwrite,
        dry_run, json, quiet,
    )  # fmt: skip


def llada(
    tokens: Annotated[Path, typer.Argument(help="A tokens artifact, of `cola tokenize`.")],
    output: options.Output,
    match: Match = None,
    preset: options.Preset = None,
    config: options.Config = None,
    set: options.Set = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train the masked-diffusion baseline (LLaDA): a bidirectional transformer that fills in masks.

    Example: cola train llada runs/demo/tokens -o runs/demo/llada --match runs/demo/prior
    """
    _baseline(
        "llada", tokens, output, match, preset, config, set, device, threads, overwrite,
        dry_run, json, quiet,
    )  # fmt: skip


def _baseline(
    kind: Baseline,
    tokens: Path,
    output: Path,
    match: Path | None,
    preset: str | None,
    config: Path | None,
    assignments: list[str] | None,
    device: str,
    threads: int | None,
    overwrite: bool,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> None:
    from cola_cli.artifacts import Artifact
    from cola_cli.settings import resolve
    from cola_cli.settings.baseline import BaselineSettings
    from cola_cli.stages import train_baseline as stage

    recorded = (str(match), stage.matched_settings(match)) if match else None
    settings = resolve(
        BaselineSettings,
        "baseline",
        preset,
        config,
        os.environ,
        assignments or (),
        recorded=recorded,
    )
    matched: dict[str, Any] = {}
    if match:
        network = stage.model_config(kind, Artifact.open(tokens, "tokens"), settings)
        matched = stage.match_report(match, network)
    if dry_run:
        plan = stage.plan_baseline(kind, tokens, settings, device) | matched
        show_plan("baseline", settings, plan, json)
        return
    report = reporter(quiet or not leads())
    if matched:
        report.note(
            f"{settings.model.layers} layers: {matched['core_parameters']:,} parameters between"
            f" embedding and head, {matched['match_ratio']:.1%} of the prior's"
        )
    outcome = stage.train_baseline(
        kind, tokens, output, settings, report, device, threads, overwrite
    )
    show_outcome(outcome, json, BASELINE_FIGURES)


VAE_FIGURES = {
    "validation_reconstruction": "reconstruction loss, nats a token",
    "validation_accuracy": "tokens reconstructed from the posterior mean",
    "validation_accuracy_noisy": "tokens reconstructed under latent noise",
    "validation_accuracy_masked": "masked tokens predicted",
    "validation_kl": "KL to N(0, I), nats a latent",
    "validation_log_snr": "logSNR of the posterior",
    "validation_active_channels": "active channels",
}
PRIOR_FIGURES = {
    "validation_flow": "flow loss",
    "validation_flow_of_zero": "flow loss of predicting zero",
    "validation_flow_of_mean": "flow loss of predicting the mean",
    "validation_flow_of_linear": "flow loss of the best linear predictor",
    "validation_accuracy": "tokens reconstructed from the posterior mean",
    "validation_drift": "mean squared drift of the latents",
    "validation_effective_rank": "effective rank of the latents",
}


BASELINE_FIGURES = {
    "validation_loss": "loss, nats a token (llada: a bound)",
    "validation_accuracy": "next tokens predicted",
    "validation_accuracy_masked": "masked tokens predicted",
}


def leads() -> bool:
    """Whether this process is the one that talks: of those under torchrun, the first."""
    return os.environ.get("RANK", "0") == "0"


def show_outcome(outcome: Outcome, as_json: bool, figures: Mapping[str, str]) -> None:
    """Say what came of a training stage: its validation figures."""
    if not leads():
        return
    if not outcome.changed and not as_json:
        print(f"{outcome.path}: up to date")
        return
    lines = [f"{outcome.path}: done"]
    for name, meaning in figures.items():
        if name in outcome.statistics:
            lines.append(f"  {meaning}: {outcome.statistics[name]:.4f}")
    value = {"path": str(outcome.path), "changed": outcome.changed} | outcome.statistics
    print_result(lines, value, as_json)


def show_plan(table: str, settings: Settings, plan: dict[str, Any], as_json: bool) -> None:
    """Print resolved settings and what the run is expected to take."""
    if as_json:
        print_json({"settings": settings.model_dump(mode="json"), "plan": plan})
        return
    from cola_cli.settings import to_toml

    print(to_toml(table, settings))
    for name, value in plan.items():
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
        print(f"{name.replace('_', ' ')}: {shown}")
