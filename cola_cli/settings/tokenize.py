"""Settings of `cola tokenize`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cola_cli.models.config import later
from cola_cli.settings.fields import Settings, runtime, timeout_of_ranks


class TokenizeSettings(Settings):
    """How a corpus becomes packed tokens."""

    vocab_size: int = Field(
        8192, ge=1, le=1 << 24, description="Train a byte-level BPE of this size."
    )
    seq_len: int = Field(512, ge=2, le=1 << 20, description="Tokens of a packed sequence.")
    text_field: str = Field("text", description="Field or column of records with the text.")
    documents: Literal["blank-line", "file"] = Field(
        "blank-line", description="Where text files are cut into documents."
    )
    normalize: Literal["none", "nfc"] = Field("none", description="Unicode normalisation.")
    validation_fraction: float = Field(
        0.05, ge=0.0, lt=1.0, description="Share of documents held out."
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of the validation split.")
    end_of_text: str | None = Field(
        None, description="Token of a given tokenizer that ends documents. Unset: the usual names."
    )
    near_duplicates: float | None = later(
        None,
        ge=0.7,
        le=1.0,
        description="Leave out documents that resemble an earlier one so much: the Jaccard index of their"
        " runs of 13 bytes. Unset: only equal ones. Needs the extra near-duplicates.",
    )
    chat: bool = later(
        False,
        description="Records are conversations, one a sequence, of which models learn the answers.",
    )
    separate: int = later(
        0,
        ge=0,
        le=1 << 20,
        description="Documents, or conversations, share a sequence without seeing one another, and begin at"
        " multiples of so many tokens: of a prior's block. 0: documents see those before them.",
    )
    chat_template: str | None = later(
        None,
        description="Jinja template of conversations. Unset: the one beside the tokenizer, else a plain one.",
    )
    malformed: Literal["error", "skip"] = later(
        "error", description="Conversations that cannot be used: an error, or left out and counted."
    )
    sample_bytes: int = Field(
        64 << 20, ge=1, description="Bytes of text that the tokenizer is trained on."
    )
    part_bytes: int = Field(4 << 20, ge=1, description="Bytes of text of one part.")
    workers: int | None = runtime(
        None, ge=1, description="Processes. Unset: as many as there are cores."
    )
    timeout: float = timeout_of_ranks()
