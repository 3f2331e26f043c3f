"""The `cola` command: every subcommand in one place. Nothing here may import torch."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cola_cli.cli import (
    artifacts,
    chat,
    diagnose,
    doctor,
    encode,
    evaluate,
    exchange,
    likelihood,
    report,
    sample,
    serve,
    settings,
    study,
    tokenize,
    train,
)
from cola_cli.cli.console import errors_shown, prepare_streams
from cola_cli.cli.options import register
from cola_cli.families import trainings
from cola_cli.version import __version__

TRAININGS = [(family, train.command_of(family)) for family in trainings()]
# The commands in the order in which they are met, as `cola --help` shows them; a group has its own.
PANELS: dict[str, dict[str, Any]] = {
    "Stages": {
        "tokenize": tokenize.tokenize,
        "train": {family.command: body for family, body in TRAININGS if family.group},
        "encode": encode.encode,
        **{family.stage: body for family, body in TRAININGS if not family.group},
        "sample": sample.sample,
        "chat": chat.chat,
        "serve": serve.serve,
    },
    "Settings": {
        "init": settings.init,
        "settings": settings.settings,
        "schema": settings.schema,
    },
    "Artifacts": {
        "status": artifacts.status,
        "inspect": artifacts.inspect,
        "sql": artifacts.sql,
        "verify": artifacts.verify,
        "log": artifacts.log,
    },
    "Measurements": {
        "eval": {
            "score": evaluate.score,
            "words": evaluate.words,
            "text": evaluate.text,
            "run": evaluate.run,
            "fetch": evaluate.fetch,
            "cloze": evaluate.cloze,
            "table": evaluate.compare,
        },
        "likelihood": likelihood.likelihood,
        "diagnose": {"vae": diagnose.vae},
        "study": {"plan": study.plan, "run": study.run, "table": study.show, "plot": study.plot},
        "report": report.report,
    },
    "Exchange": {
        "pull": exchange.pull,
        "push": exchange.push,
        "import": exchange.import_checkpoint,
        "export": exchange.export,
    },
    "Machine": {"doctor": doctor.doctor},
}
GROUPS = {
    "train": "Train the Text VAE, the prior, or a baseline.",
    "diagnose": "What a trained network's latents are like.",
    "eval": "The eight generative benchmarks.",
    "study": "Models along compute or along a setting.",
}
ORDER = [name for commands in PANELS.values() for name in commands]
OLD = {"score": "likelihood", "scaling": "study"}  # names of the version before


class InOrder(TyperGroup):
    """A group that lists its commands as PANELS does, without their old names."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return ORDER


app = typer.Typer(
    name="cola",
    cls=InOrder,
    help="Train and sample continuous latent diffusion language models (Cola DLM).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import platform
        from importlib.metadata import version

        # the build of torch names its CUDA; importing it to ask would take a second
        print(f"cola {__version__} (Python {platform.python_version()}, torch {version('torch')})")
        raise typer.Exit


@app.callback()
def cola(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train and sample continuous latent diffusion language models (Cola DLM)."""


def _add(name: str, body: Any, **about: Any) -> None:
    """Add a command, or a group of some."""
    if not isinstance(body, dict):
        register(app, name, body, **about)
        return
    group = typer.Typer(help=GROUPS[OLD.get(name, name)], no_args_is_help=True)
    # so that the name of the only command of a group is to be given too
    group.callback()(lambda: None)
    for own, one in body.items():
        register(group, own, one)
    app.add_typer(group, name=name, **about)


for panel, commands in PANELS.items():
    for name, body in commands.items():
        _add(name, body, rich_help_panel=panel)
        for old in (old for old, new in OLD.items() if new == name):
            _add(old, body, hidden=True)


def main() -> None:
    """Entry point of the `cola` script."""
    prepare_streams()
    try:
        with errors_shown("--debug" in sys.argv):  # also of what a command needs before it begins
            app()
    except typer.Exit as end:
        sys.exit(end.exit_code)
