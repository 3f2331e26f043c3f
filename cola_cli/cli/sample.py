"""cola sample: continue prompts, block by block."""

from __future__ import annotations

import itertools
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cola_cli.cli.console import print_json
from cola_cli.cli.options import (
    MACHINE,
    SHARDED,
    Invocation,
    Model,
    command,
    output_option,
    setting_flags,
)
from cola_cli.errors import UsageError

if TYPE_CHECKING:
    from cola_cli.sampling.prompts import Prompt
    from cola_cli.settings.sample import SampleSettings
    from cola_cli.stages.answers import Sample


@command(*MACHINE, *SHARDED, "dry_run", table="sample")
@setting_flags(
    "max_new_tokens", "steps", "solver", "guidance", "guidance_interval", "temperature", "top_k", "top_p",
    "repetition_penalty", "seed", "stop", panel="Sampling",
)  # fmt: skip
@setting_flags("first_block", "repaint_times", "repaint_fraction", panel="First block")
@setting_flags("compat", "dtype", "batch_size")
def sample(
    model: Model,
    run: Invocation,
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
        output_option("Write a samples artifact, which resumes.", artifact=True),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the block being denoised (on a terminal).")
    ] = False,
) -> None:
    """Continue prompts block by block, on the terminal, as JSON lines, or into an artifact.

    A text that is piped in is a prompt too.

    Example: cola sample runs/demo/prior --prompt "Once upon a time"
    """
    from cola_cli.artifacts.places import require_apart
    from cola_cli.stages.sample import (
        DEMO_PROMPT,
        plan_sampling,
        sample_to_artifact,
        stored_settings,
    )
    from cola_cli.stages.shards import WHOLE
    from cola_cli.weights.names import demo_model

    piped = None if prompt or prompts else _piped()
    if model == demo_model() and prompt is None and prompts is None and piped is None:
        prompt = [DEMO_PROMPT]
    settings = run.settings(recorded=stored_settings(model))
    if bool(prompt) + (prompts is not None) + (piped is not None) != 1:
        raise UsageError(
            "give either --prompt or --prompts.", 'Such as: --prompt "Once upon a time".'
        )
    if output is None and (run.shard != WHOLE or run.given["on"] is not None):
        raise UsageError("--shard and --on are for artifacts.", "Give -o too, or drop them.")
    if run.given["on"] is not None and (piped is not None or prompts == "-"):
        raise UsageError("--on cannot pass on standard input.", "Give --prompts a file.")
    found = _prompts(prompt, prompts) if piped is None else iter([piped])
    if run.dry_run:
        run.show_plan(settings, plan_sampling(model, settings, list(found), run.device))
    elif output is not None:
        if prompts not in (None, "-"):
            require_apart(output, (Path(prompts),))
        run.make_shards()
        outcome = sample_to_artifact(model, list(found), output, settings, run, run.shard)
        run.show_outcome(
            outcome,
            lambda made: [f"{output}: {made['prompts']:,} prompts, {made['tokens']:,} new tokens"],
        )
    else:
        _to_stdout(model, found, settings, run, watch)


def _piped() -> Prompt | None:
    """The prompt that a pipe or a file gives as standard input, if it is one and gives any."""
    from cola_cli.sampling.prompts import piped_prompt

    mode = os.fstat(sys.stdin.fileno()).st_mode
    return piped_prompt(sys.stdin.buffer) if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) else None


def _prompts(given: list[str] | None, file: str | None) -> Iterator[Prompt]:
    """The prompts, at least one; the first has been read, but from standard input, which may wait."""
    from cola_cli.sampling.prompts import given_prompts, not_empty, parse_prompts, read_prompts

    if given:
        return iter(given_prompts(given))
    if file == "-":
        return not_empty(parse_prompts(sys.stdin.buffer, "standard input"))
    if not file:
        raise UsageError("--prompts names no file.", "Is a variable in the command empty?")
    found = not_empty(read_prompts(Path(file)))
    return itertools.chain([next(found)], found)


def _to_stdout(
    path: Path, prompts: Iterator[Prompt], settings: SampleSettings, run: Invocation, watch: bool
) -> None:
    from cola_cli.machine.threads import prepare_torch
    from cola_cli.stages.answers import open_model, sample_stream

    run.reporter.note(f"using {prepare_torch(run.threads)}")
    model = open_model(path, settings, run.device)
    if watch and not run.json and sys.stdout.isatty():
        from cola_cli.api import Cola
        from cola_cli.cli.watch import watch_denoising

        if not isinstance(model, Cola):
            raise UsageError(
                "--watch shows latents being denoised; a baseline has none.", "Drop it."
            )
        watch_denoising(model, prompts, settings)
        return
    samples = sample_stream(model, enumerate(prompts), settings, run.reporter)
    if run.json:
        for finished in _in_order(samples):
            print_json(finished.row())
    else:
        _print_text(samples)


def _in_order(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Finished samples in the order of their prompts."""
    held: dict[int, Sample] = {}
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
    try:
        for one in samples:
            latest[one.item] = one
            while current := latest.get(following):
                if shown < 0:
                    shown = 0
                    print(current.prompt.text, end="")
                print(current.text[shown:], end="", flush=True)
                shown = max(shown, len(current.text))
                if current.finish == "running":
                    break
                print("\n", flush=True)
                del latest[following]
                following, shown = following + 1, -1
    except BaseException:
        if shown >= 0:
            print(flush=True)  # the message begins on a line of its own
        raise
