"""cola report: a page of what runs made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.options import MODEL, Invocation, command, output_option


@command()
def report(
    run: Invocation,
    runs: Annotated[
        list[Path],
        MODEL,
        typer.Argument(metavar="RUN", help="Directories of artifacts, or single artifacts."),
    ],
    output: Annotated[Path, output_option("The page to write, such as report.html.")],
) -> None:
    """Write one HTML page: lineage, settings, training curves, latents, samples, benchmarks, scaling.

    The page holds everything it shows and fetches nothing. Several runs are compared in the same charts.

    Example: cola report runs/demo runs/wider -o report.html
    """
    from cola_cli.artifacts.files import write_atomic
    from cola_cli.artifacts.places import require_file_place
    from cola_cli.report.page import MARK, report_page

    require_file_place(output, "a report", MARK)
    page = report_page(runs).encode()
    write_atomic(output, page)
    run.say([f"{output}: {len(page):,} bytes"], {"path": str(output), "bytes": len(page)})
