"""The `cola` command: every subcommand in one place. Nothing here may import torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cola_cli.cli import (
    diagnose,
    encode,
    eval_cloze,
    eval_text,
    evaluate,
    export,
    import_,
    inspect,
    report,
    sample,
    schema,
    score,
    sql,
    status,
    study,
    tokenize,
    train,
    verify,
)
from cola_cli.cli.console import errors_shown
from cola_cli.machine import interruption
from cola_cli.version import __version__

# The commands in the order in which they are met, as `cola --help` shows them.
PANELS = {
    "Stages": ("tokenize", "train", "encode", "sample"),
    "Artifacts": ("status", "inspect", "sql", "verify", "schema"),
    "Measurements": ("eval", "score", "diagnose", "study", "report"),
    "Exchange": ("import", "export"),
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


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors become one sentence and an exit code, and whose signals are handled."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        with errors_shown(bool(options.get("debug"))):
            interruption.install()
            try:
                command(*args, **options)
            finally:
                interruption.ignore()

    return run


for _command in (
    tokenize.tokenize,
    encode.encode,
    sample.sample,
    schema.schema,
    status.status,
    verify.verify,
    inspect.inspect,
    report.report,
    sql.sql,
    export.export,
    score.score,
    import_.import_,
):
    name = _command.__name__.rstrip("_")
    app.command(name, rich_help_panel=PANEL_OF[name])(guarded(_command))


training = typer.Typer(help="Train the Text VAE, the prior, or a baseline.", no_args_is_help=True)
training.command()(guarded(train.vae))
training.command()(guarded(train.prior))
training.command()(guarded(train.ar))
training.command()(guarded(train.llada))
app.add_typer(training, name="train", rich_help_panel=PANEL_OF["train"])


diagnosis = typer.Typer(help="What a trained network's latents are like.", no_args_is_help=True)
diagnosis.command()(guarded(diagnose.vae))
# the callback keeps `vae` a name to be given, as the group has one command so far
diagnosis.callback()(lambda: None)
app.add_typer(diagnosis, name="diagnose", rich_help_panel=PANEL_OF["diagnose"])


evaluation = typer.Typer(help="The eight generative benchmarks.", no_args_is_help=True)
evaluation.command()(guarded(evaluate.score))
evaluation.command()(guarded(evaluate.words))
evaluation.command()(guarded(eval_text.text))
evaluation.command()(guarded(evaluate.run))
evaluation.command()(guarded(evaluate.fetch))
evaluation.command()(guarded(eval_cloze.cloze))
evaluation.command("table")(guarded(evaluate.compare))
app.add_typer(evaluation, name="eval", rich_help_panel=PANEL_OF["eval"])


studies = typer.Typer(help="Models along compute or along a setting.", no_args_is_help=True)
studies.command()(guarded(study.plan))
studies.command()(guarded(study.run))
studies.command("table")(guarded(study.table_))
studies.command()(guarded(study.plot))
app.add_typer(studies, name="study", rich_help_panel=PANEL_OF["study"])
app.add_typer(studies, name="scaling", hidden=True)  # its name before


def main() -> None:
    """Entry point of the `cola` script."""
    app()
