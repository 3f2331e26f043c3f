"""What each kind of artifact promises is what the stages write, to the last statistic and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cola_cli.artifacts import Artifact, Identity, Output
from cola_cli.artifacts.kinds import (
    KINDS,
    Evaluation,
    Latents,
    Record,
    Samples,
    Tokens,
    TrainedModel,
    TypedArtifact,
)
from cola_cli.artifacts.rows import artifact_rows
from cola_cli.errors import DamagedArtifact, InputError
from tests.artifacts import format_page
from tests.conftest import Run

MADE = Path(__file__).parent.parent / "format1" / "run"
PLACES: dict[str, type[TypedArtifact[Any]]] = {
    "tokens": Tokens, "latents": Latents, "samples": Samples, "answers": Evaluation,
    "vae": TrainedModel, "prior": TrainedModel, "ar": TrainedModel,
}  # fmt: skip


def promised(kind: type[Record], written: dict[str, Any]) -> list[str]:
    """The fields that must be there, in order, with the optional ones that are."""
    fields = kind.model_fields.items()
    return [name for name, field in fields if field.is_required() or name in written]


@pytest.mark.parametrize("name", PLACES)
def test_an_artifact_has_the_promised_files_and_statistics(name: str) -> None:
    artifact = PLACES[name].open(MADE / name)
    written = artifact.manifest.statistics
    assert json.loads(artifact.statistics.model_dump_json(exclude_unset=True)) == written
    if isinstance(artifact, TrainedModel):
        assert {"parameters", "seq_len", "steps"} < set(written)  # and the metrics
    else:
        assert list(written) == promised(type(artifact.statistics), written)
    for file in artifact.FILES:
        pattern = file.replace("NAME", "*")
        assert "adapters" in file or list(artifact.path.glob(pattern)), file


@pytest.mark.parametrize("name", [name for name, kind in PLACES.items() if kind.ROW])
def test_parts_have_the_promised_columns_and_statistics(name: str) -> None:
    artifact = PLACES[name].open(MADE / name)
    row = artifact.ROW
    assert row is not None
    for part in artifact.parts:
        kind = artifact.PART or Record
        assert list(part.statistics) == promised(kind, part.statistics)
        kind.of(part.statistics, artifact.path)
    if artifact.parts[0].file.endswith(".parquet"):
        names = pq.read_schema(artifact.part_file(0)).names
        assert names == promised(row, dict.fromkeys(names))
        return
    for found in artifact_rows(artifact):
        assert list(found) == list(row.model_fields)
        row.of(found, artifact.path)


def test_a_statistic_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    output = Output.open(tmp_path, "tokens", Identity(stage="tokenize", settings={}, inputs={}))
    with output.writing() as writer:
        writer.finish(Artifact.open(MADE / "tokens").manifest.statistics | {"seq_len": "long"})
    with pytest.raises(DamagedArtifact, match=r"seq_len: Input should be a valid integer"):
        Tokens.open(tmp_path).statistics.seq_len  # noqa: B018
    with pytest.raises(
        InputError, match="is an artifact of kind tokens, but one of kind latents is needed"
    ):
        Latents.open(tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_the_promise_is_printed(cola: Run, name: str) -> None:
    shown = json.loads(cola("schema", name).stdout)
    assert shown["description"] == KINDS[name].__doc__
    assert shown["statistics"]["properties"].keys() == KINDS[name].STATISTICS.model_fields.keys()
    assert shown["files"] == KINDS[name].FILES


def test_the_page_on_the_format_is_that_of_the_types() -> None:
    assert format_page.PAGE.read_text(encoding="utf-8") == format_page.page_with(
        format_page.section()
    ), "run: just format-page"
