"""cola eval cloze: held-out passages whose last word is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.console import print_result
from cola_cli.cli.options import Invocation, command, output_option


@command()
def cloze(
    run: Invocation,
    tokens: Annotated[Path, typer.Argument(help="A tokens artifact, of `cola tokenize`.")],
    output: Annotated[Path, output_option("The JSONL file to write.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Passages.")] = 128,
    context: Annotated[
        int, typer.Option("--context", min=20, help="Characters before the word that is asked for.")
    ] = 240,
) -> None:
    """Cut passages out of the validation text, in the manner of LAMBADA: the last word is the answer.

    The file serves `cola eval run --task lambada --data` and, being prompts, `cola sample --prompts`.

    Example: cola eval cloze runs/demo/tokens -o runs/demo/cloze.jsonl
    """
    from cola_cli.artifacts.files import write_atomic
    from cola_cli.artifacts.kinds import Tokens
    from cola_cli.artifacts.places import require_file_place
    from cola_cli.evaluation.cloze import cloze_lines

    require_file_place(output, "passages", reads=(tokens,))
    lines = cloze_lines(Tokens.open(tokens), count, context)
    write_atomic(output, lines)
    made = lines.count(b"\n")
    print_result([f"{output}: {made:,} passages"], {"path": str(output), "items": made}, run.json)
