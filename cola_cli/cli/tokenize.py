"""cola tokenize: corpus to packed tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli.options import SHARDED, Invocation, command, setting_flags
from cola_cli.errors import UsageError
from cola_cli.machine.launcher import leads


@command("output", *SHARDED, "dry_run", table="tokenize")
@setting_flags(
    "vocab_size", "end_of_text", "seq_len", "text_field", "documents", "normalize",
    "near_duplicates", "validation_fraction", "seed", "workers", "chat", "malformed", "separate",
)  # fmt: skip
def tokenize(
    corpus: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, patterns, URLs (s3://, gs://, hf://datasets/org/name ...): .txt .md .jsonl"
            " .csv .parquet, also .gz .zst."
        ),
    ],
    run: Invocation,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A Hugging Face tokenizer.json to use.")
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            help="Jinja template, or tokenizer_config.json, of --chat; unset, what lies beside the tokenizer."
        ),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add the files that are new to the tokens in the output.")
    ] = False,
) -> None:
    """Turn text files into packed token sequences and their tokenizer; with --chat, conversations.

    Example: cola tokenize "texts/*.txt" -o runs/demo/tokens --vocab-size 8192
    """
    from cola_cli.artifacts.manifest import read_manifest
    from cola_cli.corpus.additions import grown
    from cola_cli.corpus.chats import read_template
    from cola_cli.corpus.sources import find_corpus
    from cola_cli.stages.run import recorded_settings
    from cola_cli.stages.tokenize import tokenize as stage

    if tokenizer is not None and run.flags["vocab_size"] is not None:
        raise UsageError(
            "--tokenizer and --vocab-size cannot be combined.",
            "Give one tokenizer or the size of one to train.",
        )
    if add and run.overwrite:
        raise UsageError("--add keeps what --overwrite replaces.", "Give one of them.")
    if add and run.given["on"] is not None:
        raise UsageError("--add is done by one process.", "Run it without --on.")
    output = run.output
    settings = run.settings(recorded_settings(output, "tokenize") if add else None)
    if chat_template is not None:
        settings = settings.model_copy(update={"chat_template": read_template(chat_template)})
    if run.dry_run:
        found = grown(corpus, output, read_manifest(output)) if add else find_corpus(corpus, output)
        run.show_plan(settings, {"files": len(found.files), "bytes": found.bytes})
        return
    run.make_shards()
    outcome = stage(corpus, output, settings, tokenizer, run, run.shard, add)
    if not leads():
        return
    made = outcome.statistics
    if not outcome.changed:
        state, line = "up to date", "up to date"
    elif "documents" not in made:
        state, line = "unfinished", f"{made['parts']} parts done; other processes make the rest"
    else:
        state = "complete"
        near = f" {made['near_duplicates']:,} near-duplicates," if "near_duplicates" in made else ""
        line = (
            f"{made['documents']:,} documents, {made['tokens']:,} tokens of {made['vocab_size']:,},"
            f" {made['bytes_per_token']:.2f} bytes per token, {made['duplicates']:,} duplicates,"
            f"{near} {made['rejects']:,} rejects"
        )
    run.say([f"{output}: {line}"], {"path": str(output), "status": state, "statistics": made})
