"""Options that many commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[Path, typer.Option("--output", "-o", help="Directory of the artifact to make.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Make the output anew if it holds something else of cola's."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress or remarks on stderr.")]
Debug = Annotated[
    bool, typer.Option("--debug", envvar="COLA_DEBUG", help="Show tracebacks of errors.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print settings, plan and expected cost; write nothing.")
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Named settings: tiny, small, base, paper-2b.")
]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="One setting, such as train.steps=60."),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Make every N-th part only, from part I (from 0); a last run without it completes them.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of the matrix library. Default: by itself."),
]
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1 ... or auto: a GPU if there is one.")
]
