"""cola encode: latents of a tokens artifact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli import options
from cola_cli.cli.console import print_json, print_result, reporter


def encode(
    tokens: Annotated[Path, typer.Argument(help="A tokens artifact, of `cola tokenize`.")],
    output: options.Output,
    vae: Annotated[Path, typer.Option("--vae", help="A vae artifact, of `cola train vae`.")],
    shard: options.Shard = None,
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
    """Write the posterior of every sequence: mean and log-variance, in half precision.

    Example: cola encode runs/demo/tokens --vae runs/demo/vae -o runs/demo/latents
    """
    from cola_cli.cli.train import leads, show_plan
    from cola_cli.settings import resolve
    from cola_cli.settings.encode import EncodeSettings
    from cola_cli.stages.encode import encode as encode_stage
    from cola_cli.stages.encode import plan_encode
    from cola_cli.stages.shards import parse_shard

    settings = resolve(EncodeSettings, "encode", preset, config, os.environ, set or ())
    if dry_run:
        show_plan("encode", settings, plan_encode(tokens, vae), json)
        return
    outcome = encode_stage(
        tokens,
        vae,
        output,
        settings,
        reporter(quiet or not leads()),
        device,
        threads,
        parse_shard(shard),
        overwrite,
    )
    if not leads():
        return
    found = outcome.statistics
    if json:
        print_json({"path": str(outcome.path), "changed": outcome.changed} | found)
        return
    if not outcome.changed:
        print(f"{outcome.path}: up to date")
    elif "rows" not in found:
        print(f"{outcome.path}: {found['parts']} parts done, others to come")
    else:
        summary = f"{found['rows']:,} sequences, logSNR {found['log_snr']:.3f}"
        print_result([f"{outcome.path}: done", f"  {summary}"], found, False)
