"""cola encode: latents of a tokens artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cola_cli.cli.options import MACHINE, MODEL, SHARDED, Invocation, command


@command("output", *MACHINE, *SHARDED, "dry_run", table="encode")
def encode(
    tokens: Annotated[Path, typer.Argument(help="A tokens artifact, of `cola tokenize`.")],
    vae: Annotated[
        Path,
        MODEL,
        typer.Option(
            "--vae", help="A vae artifact, of `cola train vae`, or a prior artifact: its VAE."
        ),
    ],
    run: Invocation,
) -> None:
    """Write the posterior of every sequence: mean and log-variance, in half precision or fewer bits.

    Example: cola encode runs/demo/tokens --vae runs/demo/vae -o runs/demo/latents
    """
    from cola_cli.stages.encode import encode as stage
    from cola_cli.stages.encode import plan_encode

    settings, output = run.settings(), run.output
    if run.dry_run:
        run.show_plan(settings, plan_encode(tokens, vae, settings))
        return
    run.make_shards()
    outcome = stage(tokens, vae, output, settings, run, run.shard)

    def describe(made: dict[str, Any]) -> list[str]:
        return [f"{output}: done", f"  {made['rows']:,} sequences, logSNR {made['log_snr']:.3f}"]

    run.show_outcome(outcome, describe)
