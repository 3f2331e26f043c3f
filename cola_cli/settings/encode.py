"""Settings of `cola encode`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cola_cli.models.config import later
from cola_cli.settings.fields import Settings, runtime, timeout_of_ranks


class EncodeSettings(Settings):
    """Everything that `cola encode` can be told."""

    batch_size: int = runtime(32, ge=1, description="Sequences at once.")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="float32", description="Precision of the encoder. auto: bf16 autocast on a GPU."
    )
    stored: Literal["float16", "int8", "mean"] = later(
        "float16",
        description="Numbers on disk. int8: 8 bits, with a scale for each channel of a sequence. mean: such"
        " means, and one variance for each channel of a sequence.",
    )
    rows_per_group: int = Field(default=256, ge=1, description="Sequences of a Parquet row group.")
    compression_level: int = Field(
        default=1, ge=1, le=19, description="Level of the Zstandard compression."
    )
    timeout: float = timeout_of_ranks()
