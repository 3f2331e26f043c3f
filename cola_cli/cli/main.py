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

COMMANDS = {family.stage: train.command_of(family) for family in trainings()}
STANDALONE = [family.stage for family in trainings() if not family.group]
# The commands in the order in which they are met, as `cola --help` shows them.
PANELS = {
    "Stages": ("tokenize", "train", "encode", *STANDALONE, "sample", "chat", "serve"),
    "Settings": ("init", "settings", "schema"),
    "Artifacts": ("status", "inspect", "sql", "verify", "log"),
    "Measurements": ("eval", "likelihood", "diagnose", "study", "report"),
    "Exchange": ("pull", "push", "import", "export"),
    "Machine": ("doctor",),
}
PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}


class InOrder(TyperGroup):
    """A group that lists its commands as PANELS does."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return [name for name in PANEL_OF if name in self.commands]


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
        print(f"cola {__version__}")
        raise typer.Exit


@app.callback()
def cola(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train and sample continuous latent diffusion language models (Cola DLM)."""


for name, body in {
    "tokenize": tokenize.tokenize,
    "encode": encode.encode,
    "sample": sample.sample,
    "chat": chat.chat,
    "serve": serve.serve,
    "init": settings.init,
    "settings": settings.settings,
    "schema": settings.schema,
    "status": artifacts.status,
    "inspect": artifacts.inspect,
    "sql": artifacts.sql,
    "verify": artifacts.verify,
    "log": artifacts.log,
    "likelihood": likelihood.likelihood,
    "report": report.report,
    "pull": exchange.pull,
    "push": exchange.push,
    "import": exchange.import_checkpoint,
    "export": exchange.export,
    "doctor": doctor.doctor,
    **{name: COMMANDS[name] for name in STANDALONE},
}.items():
    register(app, name, body, rich_help_panel=PANEL_OF[name])
register(app, "score", likelihood.likelihood, hidden=True)  # its name before

GROUPS = {
    "train": (
        "Train the Text VAE, the prior, or a baseline.",
        {f.command: COMMANDS[f.stage] for f in trainings() if f.group == "train"},
    ),
    "diagnose": ("What a trained network's latents are like.", {"vae": diagnose.vae}),
    "eval": (
        "The eight generative benchmarks.",
        {
            "score": evaluate.score,
            "words": evaluate.words,
            "text": evaluate.text,
            "run": evaluate.run,
            "fetch": evaluate.fetch,
            "cloze": evaluate.cloze,
            "table": evaluate.compare,
        },
    ),
    "study": (
        "Models along compute or along a setting.",
        {"plan": study.plan, "run": study.run, "table": study.show, "plot": study.plot},
    ),
}
for name, (about, bodies) in GROUPS.items():
    group = typer.Typer(help=about, no_args_is_help=True)
    # so that the name of the only command of a group is to be given too
    group.callback()(lambda: None)
    for own, body in bodies.items():
        register(group, own, body)
    app.add_typer(group, name=name, rich_help_panel=PANEL_OF[name])
    if name == "study":
        app.add_typer(group, name="scaling", hidden=True)  # its name before


def main() -> None:
    """Entry point of the `cola` script."""
    prepare_streams()
    try:
        with errors_shown(False):  # also of what a command needs before it begins
            app()
    except typer.Exit as end:
        sys.exit(end.exit_code)
