"""cola serve: models behind OpenAI's interface, with a page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cola_cli.cli.console import print_json
from cola_cli.cli.options import MACHINE, MODEL, MODEL_ARGUMENT, Invocation, command, setting_flags
from cola_cli.errors import UsageError

if TYPE_CHECKING:
    from cola_cli.serving.completions import Served

NEEDED = ("starlette", "uvicorn", "prometheus_client", "jinja2")


@command(*MACHINE, table="sample")
@setting_flags(
    "max_new_tokens", "steps", "solver", "guidance", "temperature", "top_k", "top_p", "repetition_penalty",
    "seed", panel="Defaults of requests",
)  # fmt: skip
@setting_flags("dtype", "batch_size")
def serve(
    models: Annotated[list[Path], MODEL, MODEL_ARGUMENT],
    run: Invocation,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="COLA_API_KEY", show_envvar=True, help="What clients must send."),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            help="Jinja template, or tokenizer_config.json, for chats; unset, each model's own."
        ),
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Continuations that may wait.")] = 256,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Of a prompt and its continuation.")
    ] = 2048,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a request may take.")] = 600.0,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds for requests under way when the server ends.")
    ] = 30.0,
) -> None:
    """Serve models over HTTP: OpenAI's completions and chats, health, metrics, and a page at /.

    Example: cola serve demo
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"cola serve needs {', '.join(missing)}.", "Install it: pip install 'cola-cli[serve]'"
        )
    from cola_cli.machine import interruption
    from cola_cli.machine.threads import prepare_torch

    run.reporter.note(f"using {prepare_torch(run.threads)}")
    from cola_cli.serving.app import LOOPBACK, Access, App
    from cola_cli.serving.completions import Limits
    from cola_cli.serving.scheduler import Scheduler
    from cola_cli.serving.server import address, listen, make_server

    if api_key is not None and (not api_key.isascii() or not api_key.strip()):
        raise UsageError("the API key is empty, or not ASCII.", "Give another --api-key.")
    local = f"[{host}]" in LOOPBACK or host in LOOPBACK
    socket = listen(host, port)
    served = _open(models, chat_template, run)
    rows = served[0].settings.batch_size
    scheduler = Scheduler(rows, queue)
    limits = Limits(tokens=max_tokens, seconds=timeout, choices=rows + queue)
    app = App(served, scheduler, limits).asgi(Access(api_key, local))
    if api_key is None and not local:
        run.reporter.warn(f"{host} may be reached by others, and there is no --api-key")
    run.reporter.note(f"serving {', '.join(one.name for one in served)} on {address(socket)}")
    if run.json:
        print_json({"url": address(socket), "models": [one.name for one in served]})
    try:
        with interruption.deferred():  # a signal ends the server, which is a success
            make_server(app, drain, 2 * (rows + queue) + 64).run(sockets=[socket])
    finally:
        scheduler.close()


def _open(models: list[Path], chat_template: Path | None, run: Invocation) -> list[Served]:
    """The models, under the names of folders or repositories; those of equal names under their paths."""
    import time

    from cola_cli.api import Cola
    from cola_cli.serving.chat import template_for
    from cola_cli.serving.completions import Served
    from cola_cli.serving.watching import Watching
    from cola_cli.stages.answers import open_model
    from cola_cli.stages.sample import stored_settings

    found = []
    names = {path: _name(path) for path in models}
    for path, own in names.items():
        settings = run.settings(recorded=stored_settings(path))
        model = open_model(path, settings, run.device)
        name = own if list(names.values()).count(own) == 1 else str(path)
        template = template_for(model, chat_template)
        watching = Watching(model) if isinstance(model, Cola) else None
        found.append(Served(name, model, settings, watching, template, int(time.time())))
    return found


def _name(path: Path) -> str:
    from cola_cli.artifacts.origin import published
    from cola_cli.weights import hub

    address = published(path)
    return hub.parse(address)[0] if address else path.resolve().name
