"""cola tokenize: corpus to packed tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cola_cli.cli import options
from cola_cli.cli.console import print_result, reporter


def tokenize(
    corpus: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, patterns, URLs (s3://, gs:// ...): .txt .md .jsonl .csv .parquet,"
            " also .gz .zst."
        ),
    ],
    output: options.Output,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A Hugging Face tokenizer.json to use.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", help="Train a byte-level BPE of this size.")
    ] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", help="Tokens a packed row.")] = None,
    text_field: Annotated[
        str | None, typer.Option("--text-field", help="Field or column of records with the text.")
    ] = None,
    documents: Annotated[
        str | None, typer.Option("--documents", help="Text files are cut at: blank-line, or file.")
    ] = None,
    normalize: Annotated[
        str | None, typer.Option("--normalize", help="Unicode normalisation: nfc or none.")
    ] = None,
    validation_fraction: Annotated[
        float | None, typer.Option("--validation-fraction", help="Share of documents held out.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the validation split.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes. Default: cores.")
    ] = None,
    shard: options.Shard = None,
    preset: options.Preset = None,
    config: options.Config = None,
    set_: options.Set = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Turn text files into packed token sequences and their tokenizer.

    Example: cola tokenize "texts/*.txt" -o runs/demo/tokens --vocab-size 8192
    """
    import os

    from cola_cli.cli.train import leads
    from cola_cli.errors import UsageError
    from cola_cli.settings import resolve, to_toml
    from cola_cli.settings.tokenize import TokenizeSettings
    from cola_cli.stages.shards import parse_shard
    from cola_cli.stages.tokenize import find_corpus
    from cola_cli.stages.tokenize import tokenize as run

    if tokenizer is not None and vocab_size is not None:
        raise UsageError(
            "--tokenizer and --vocab-size exclude each other.",
            "Give one tokenizer or the size of one to train.",
        )
    flags = {
        "vocab_size": vocab_size,
        "seq_len": seq_len,
        "text_field": text_field,
        "documents": documents,
        "normalize": normalize,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "workers": workers,
    }
    settings = resolve(TokenizeSettings, "tokenize", preset, config, os.environ, set_ or (), flags)
    if dry_run:
        found = find_corpus(corpus, output)
        count, size = len(found.files), found.bytes
        print_result(
            [to_toml("tokenize", settings), f"{count} files, {size:,} bytes"],
            {"settings": settings.model_dump(), "files": count, "bytes": size},
            json,
        )
        return
    talks = leads()
    outcome = run(
        corpus,
        output,
        settings,
        tokenizer,
        overwrite,
        reporter(quiet or not talks),
        parse_shard(shard),
    )
    if not talks:
        return
    figures = outcome.statistics
    state, lines = "complete", []
    if not outcome.changed:
        state, lines = "up to date", [f"{output}: up to date"]
    elif "documents" not in figures:
        state, lines = "unfinished", [f"{output}: {figures['parts']} parts done, others to come"]
    else:
        lines = [
            f"{output}: {figures['documents']:,} documents, {figures['tokens']:,} tokens of"
            f" {figures['vocab_size']:,}, {figures['bytes_per_token']:.2f} bytes per token,"
            f" {figures['duplicates']:,} duplicates, {figures['rejects']:,} rejects"
        ]
    print_result(lines, {"path": str(output), "status": state, "statistics": figures}, json)
