"""cola sample: continue prompts, block by block."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cola_cli.cli import options
from cola_cli.cli.console import print_json, print_result, reporter
from cola_cli.errors import UsageError
from cola_cli.reporting import Reporter

if TYPE_CHECKING:
    from cola_cli.sampling.prompts import Prompt
    from cola_cli.settings.sample import SampleSettings
    from cola_cli.stages.answers import Sample

SAMPLING, FIRST_BLOCK = "Sampling", "First block"


def sample(
    model: Annotated[str, typer.Argument(help="A prior artifact or a checkpoint folder.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="A text to continue; may be repeated."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help='JSONL of {"id", "prompt"}; - reads standard input.'),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write a samples artifact, which resumes."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", "-n", rich_help_panel=SAMPLING)
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Solver steps a block.", rich_help_panel=SAMPLING)
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option("--solver", help="euler, heun or midpoint.", rich_help_panel=SAMPLING),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="s in u + s (c - u).", rich_help_panel=SAMPLING),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option("--guidance-interval", help="Times where it acts.", rich_help_panel=SAMPLING),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="0 is greedy.", rich_help_panel=SAMPLING),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", rich_help_panel=SAMPLING)] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", rich_help_panel=SAMPLING)] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", rich_help_panel=SAMPLING)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", rich_help_panel=SAMPLING)] = None,
    first_block: Annotated[
        str | None,
        typer.Option(
            "--first-block",
            help="clean-repaint, partial-repaint, left-pad or right-pad.",
            rich_help_panel=FIRST_BLOCK,
        ),
    ] = None,
    repaint_times: Annotated[
        int | None, typer.Option("--repaint-times", rich_help_panel=FIRST_BLOCK)
    ] = None,
    repaint_fraction: Annotated[
        float | None, typer.Option("--repaint-fraction", rich_help_panel=FIRST_BLOCK)
    ] = None,
    compat: Annotated[
        str | None, typer.Option("--compat", help="`released` imitates the released loop.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="auto, stored, float32 or bfloat16.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Prompts at a time.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the block being denoised (on a terminal).")
    ] = False,
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
    """Continue prompts block by block, on the terminal, as JSON lines, or into an artifact.

    Example: cola sample runs/demo/prior --prompt "Once upon a time"
    """
    from cola_cli.settings import resolve
    from cola_cli.settings.sample import SampleSettings
    from cola_cli.stages.sample import demo_model

    flags = {
        "max_new_tokens": max_new_tokens,
        "steps": steps,
        "solver": solver,
        "guidance": guidance,
        "guidance_interval": guidance_interval,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "first_block": first_block,
        "repaint_times": repaint_times,
        "repaint_fraction": repaint_fraction,
        "compat": compat,
        "dtype": dtype,
        "batch_size": batch_size,
    }
    settings = resolve(SampleSettings, "sample", preset, config, os.environ, set or (), flags)
    path = demo_model() if model == "demo" and not Path(model).exists() else Path(model)
    if bool(prompt) == (prompts is not None):
        raise UsageError(
            "give either --prompt or --prompts.", 'Such as: --prompt "Once upon a time".'
        )
    found = _prompts(prompt, prompts)
    if dry_run:
        _show_plan(path, settings, list(found), device, json)
    elif output is not None:
        _to_artifact(path, list(found), output, settings, quiet, device, threads, overwrite, json)
    else:
        _to_stdout(path, found, settings, reporter(quiet), device, threads, json, watch)


def _prompts(given: list[str] | None, file: str | None) -> Iterator[Prompt]:
    from cola_cli.sampling.prompts import given_prompts, parse_prompts, read_prompts

    if given:
        yield from given_prompts(given)
    elif file == "-":
        yield from parse_prompts(sys.stdin, "standard input")
    elif file is not None:
        yield from read_prompts(Path(file))


def _to_artifact(
    model: Path,
    prompts: list[Prompt],
    output: Path,
    settings: SampleSettings,
    quiet: bool,
    device: str,
    threads: int | None,
    overwrite: bool,
    json: bool,
) -> None:
    from cola_cli.stages.sample import sample_to_artifact

    outcome = sample_to_artifact(
        model, prompts, output, settings, reporter(quiet), device, threads, overwrite
    )
    found = outcome.statistics
    line = f"{output}: up to date"
    if outcome.changed:
        line = f"{output}: {found['prompts']:,} prompts, {found['tokens']:,} new tokens"
    print_result([line], {"path": str(output), "changed": outcome.changed} | found, json)


def _to_stdout(
    path: Path,
    prompts: Iterator[Prompt],
    settings: SampleSettings,
    report: Reporter,
    device: str,
    threads: int | None,
    json: bool,
    watch: bool,
) -> None:
    from cola_cli.machine.threads import prepare_torch
    from cola_cli.stages.answers import open_model, sample_stream

    report.note(f"using {prepare_torch(threads)}")
    model = open_model(path, settings, device)
    if watch and not json and sys.stdout.isatty():
        from cola_cli.api import Cola
        from cola_cli.cli.watch import watch_denoising

        if not isinstance(model, Cola):
            raise UsageError(
                "--watch shows latents being denoised; a baseline has none.", "Drop it."
            )
        watch_denoising(model, prompts, settings)
        return
    samples = sample_stream(model, enumerate(prompts), settings, report)
    if json:
        for finished in _in_order(samples):
            print_json(finished.row())
    else:
        _print_text(samples)


def _in_order(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Finished samples in the order of their prompts."""
    held: dict[int, Any] = {}
    following = 0
    for one in samples:
        if one.finish != "running":
            held[one.item] = one
        while following in held:
            yield held.pop(following)
            following += 1


def _print_text(samples: Iterator[Sample]) -> None:
    """Prompt and continuation; the first unfinished prompt streams block by block, the others wait."""
    latest: dict[int, Sample] = {}
    following, shown = 0, -1
    for one in samples:
        latest[one.item] = one
        while current := latest.get(following):
            if shown < 0:
                print(current.prompt.text, end="")
                shown = 0
            # the last characters may change while a character is still split between two blocks
            stable = current.text if current.finish != "running" else current.text.rstrip("\ufffd")
            print(stable[shown:], end="", flush=True)
            shown = max(shown, len(stable))
            if current.finish == "running":
                break
            print("\n", flush=True)
            del latest[following]
            following, shown = following + 1, -1


def _show_plan(
    path: Path, settings: SampleSettings, prompts: list[Prompt], device: str, json: bool
) -> None:
    from cola_cli.settings import to_toml
    from cola_cli.stages.sample import plan_sampling

    plan = plan_sampling(path, settings, prompts, device)
    lines = [to_toml("sample", settings), *(f"{name}: {value:,}" for name, value in plan.items())]
    print_result(lines, {"settings": settings.model_dump(mode="json"), "plan": plan}, json)
