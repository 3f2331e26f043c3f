"""Settings of `cola tokenize`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cola_cli.settings.resolve import Settings, runtime


class TokenizeSettings(Settings):
    """How a corpus becomes packed tokens.

    vocab_size: of the tokenizer trained here (not used with a given one); seq_len: tokens a row;
    text_field: of records; documents: where text files are cut; normalize: Unicode NFC or none;
    validation_fraction: share of documents; sample_bytes: text that the tokenizer is trained on;
    part_bytes: text of one part.
    """

    vocab_size: int = Field(8192, ge=1, le=1 << 24)
    seq_len: int = Field(512, ge=2, le=1 << 20)
    text_field: str = "text"
    documents: Literal["blank-line", "file"] = "blank-line"
    normalize: Literal["none", "nfc"] = "none"
    validation_fraction: float = Field(0.05, ge=0.0, lt=1.0)
    seed: int = Field(0, ge=0, lt=1 << 63)
    sample_bytes: int = Field(64 << 20, ge=1)
    part_bytes: int = Field(4 << 20, ge=1)
    workers: int | None = runtime(None, ge=1)
