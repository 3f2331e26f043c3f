"""cola chat: write with a model in turns, in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cola_cli.cli.console import NO_MEMORY, print_json, show_error
from cola_cli.cli.options import MACHINE, Invocation, Model, command, setting_flags
from cola_cli.errors import ColaError, is_out_of_memory

if TYPE_CHECKING:
    from cola_cli.sampling.requests import Generation, Request
    from cola_cli.serving.chat import Conversation

HELP = (
    "/seed N, /guidance S, /steps N and every other setting; /reset forgets the text; /quit ends."
)


@command(*MACHINE, table="sample")
@setting_flags(
    "max_new_tokens", "steps", "solver", "guidance", "temperature", "top_k", "top_p", "repetition_penalty",
    "seed", "stop", panel="Sampling",
)  # fmt: skip
@setting_flags("dtype")
def chat(
    model: Model,
    run: Invocation,
    chat_template: Annotated[
        Path | None,
        typer.Option(help="Jinja template, or tokenizer_config.json; unset, the model's own."),
    ] = None,
) -> None:
    """Write with a model in turns: it continues what was written so far, or answers by its chat template.

    A line that begins with / is a command: /seed 3, /guidance 2, /steps 8, /reset, /help.

    Example: cola chat demo
    """
    from cola_cli.machine.threads import prepare_torch
    from cola_cli.stages.answers import open_model
    from cola_cli.stages.sample import stored_settings

    settings = run.settings(recorded=stored_settings(model))
    run.reporter.note(f"using {prepare_torch(run.threads)}")
    from cola_cli.serving.chat import Conversation, template_for

    opened = open_model(model, settings, run.device)
    conversation = Conversation(opened, settings, template_for(opened, chat_template))
    run.reporter.note(HELP)
    for line in _lines():
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if not _obeyed(conversation, line, run):
                    return
            else:
                _turn(conversation, line, run)
        # of one turn; the conversation goes on
        except ColaError as error:
            show_error(error, debug=False)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            show_error(NO_MEMORY, debug=False)


def _lines() -> Iterator[str]:
    """What is typed, or piped in, line by line."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys and history of input()
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")


def _obeyed(conversation: Conversation, line: str, run: Invocation) -> bool:
    """Do what a command says; False for the one that ends the conversation."""
    name, _, value = line[1:].partition(" ")
    if name in ("quit", "exit"):
        return False
    if name == "help":
        run.reporter.note(HELP)
    elif name == "reset":
        conversation.reset()
    else:
        run.reporter.note(f"{name} = {conversation.set(name, value.strip())}")
    return True


def _turn(conversation: Conversation, line: str, run: Invocation) -> None:
    """Continue after a line; the text streams block by block."""
    request = conversation.ask(line)
    if conversation.forgotten:
        run.reporter.note(f"(its first {conversation.forgotten:,} tokens no longer fit)")
    shown, generation = 0, None
    if sys.stdout.isatty() and not run.json and (found := _watched(conversation, request)):
        conversation.answer(found)
        return
    for _, generation in conversation.stream(request):
        text = generation.text or ""
        if not run.json:
            end = "" if generation.finish == "running" else "\n"
            print(text[shown:], end=end, flush=True)
        shown = max(shown, len(text))
    assert generation is not None
    conversation.answer(generation)
    if run.json:
        print_json({"text": text, "tokens": len(generation.ids), "finish": generation.finish})


def _watched(conversation: Conversation, request: Request) -> Generation | None:
    """The continuation, its tokens settling on the terminal; None for a model without latents."""
    from rich.console import Console

    from cola_cli.api import Cola
    from cola_cli.cli.watch import Page, watch

    model = conversation.model
    if not isinstance(model, Cola):
        return None
    tokenizer = model.require_tokenizer()
    engine = model.sampler(conversation.options(), 1, tokenizer.pad_id)
    page = Page("", [*request.prompt], tokenizer)
    return watch(engine, request, page, Console(), pause=0.0)
