"""What the page shows, read from disk: artifacts with their metrics and samples, measurements beside them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from cola_cli.artifacts import Artifact
from cola_cli.artifacts.artifact import METRICS
from cola_cli.artifacts.checks import check_file
from cola_cli.artifacts.kinds import SamplesRow
from cola_cli.artifacts.manifest import Manifest, flatten, read_manifest
from cola_cli.artifacts.parts import recorded_parts
from cola_cli.artifacts.reading import read_record
from cola_cli.artifacts.rows import read_rows
from cola_cli.errors import ColaError, InputError
from cola_cli.evaluation.diagnosis import DIAGNOSES, Diagnosis
from cola_cli.families import FAMILIES
from cola_cli.stages.status import survey
from cola_cli.studies.measurements import CURVES, Curves
from cola_cli.training.metrics import Metrics

WRITERS = [family.kind for family in FAMILIES.values() if family.writes]
KINDS = ("tokens", "vae", "latents", *WRITERS, "samples", "evaluation")  # in the order of the page
REWRITE = "Write it again, or take it away."
MOST_SAMPLES = 48  # prompts read of one artifact

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Shown:
    """One artifact as the page shows it; `inputs` maps names to fingerprints, `sources` to labels."""

    label: str
    kind: str
    state: str
    fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    bytes: int | None = None
    seconds: float = 0.0
    metrics: dict[str, Curve] = field(default_factory=dict)
    samples: list[SamplesRow] = field(default_factory=list)
    colour: int = 0

    @property
    def short(self) -> str:
        """The beginning of the fingerprint."""
        return self.fingerprint[:12]

    @property
    def named(self) -> str:
        """The label, with the state unless it is complete."""
        return self.label if self.state == "complete" else f"{self.label} ({self.state})"


@dataclass(frozen=True)
class Collected:
    """All of one report. `problems` are sentences on what could not be read."""

    title: str
    artifacts: list[Shown]
    diagnoses: dict[str, Diagnosis]
    scalings: dict[str, Curves]
    problems: list[str]

    def of(self, *kinds: str) -> list[Shown]:
        """The artifacts of some kinds, in order."""
        return [artifact for artifact in self.artifacts if artifact.kind in kinds]


def collect(runs: Sequence[Path]) -> Collected:
    """Everything at or below `runs`. Raises InputError when one is not a directory or holds nothing."""
    places: dict[Path, str] = {}  # directories of artifacts and their states
    measured: set[Path] = set()
    for run in runs:
        if not run.is_dir():
            raise InputError(f"{run} is not a directory.", "Name an artifact or a run's directory.")
        files = {path.resolve() for name in (DIAGNOSES, CURVES) for path in run.rglob(name)}
        if any(run.rglob("manifest.json")) or not files:
            places |= {Path(state.path).resolve(): state.state for state in survey(run)}
        measured |= files
    inside = {path for path in measured if any(place in path.parents for place in places)}
    base = _base([*places, *(path.parent for path in measured - inside)], places)
    problems: list[str] = []
    manifests: dict[Path, Manifest] = {}
    for place in places:
        try:
            manifests[place] = read_manifest(place)
        except ColaError as error:
            problems.append(_relative_text(error, base))
    labels = {place: _label(place, base) for place in places}
    shown = [
        _shown(place, places[place], manifests, labels, base, problems) for place in sorted(places)
    ]
    diagnoses: dict[str, Diagnosis] = {}
    scalings: dict[str, Curves] = {}
    for path in sorted(measured - inside):
        try:
            if path.name == CURVES:
                scalings[_label(path, base)] = read_record(path, Curves, REWRITE)
            else:
                diagnoses[_label(path, base)] = read_record(path, Diagnosis, REWRITE)
        except InputError as error:
            problems.append(_relative_text(error, base))
    shown.sort(key=lambda one: (KINDS.index(one.kind) if one.kind in KINDS else 99, one.label))
    title = ", ".join(dict.fromkeys(run.resolve().name for run in runs))
    return Collected(title, _coloured(shown), diagnoses, scalings, problems)


def _base(places: Sequence[Path], artifacts: dict[Path, str]) -> Path:
    """The directory below which all labels are relative."""
    common = Path(os.path.commonpath(places))
    return common.parent if common in artifacts else common


def _label(path: Path, base: Path) -> str:
    relative = path.relative_to(base).as_posix()
    return base.name if relative == "." else relative


def _relative_text(error: ColaError, base: Path) -> str:
    return error.problem.replace(f"{base}{os.sep}", "")  # the page names no place on this machine


def _shown(
    place: Path,
    state: str,
    manifests: dict[Path, Manifest],
    labels: dict[Path, str],
    base: Path,
    problems: list[str],
) -> Shown:
    if place not in manifests:
        return Shown(labels[place], "?", "damaged", "")
    manifest = manifests[place]
    finished = manifest.status == "complete"
    inputs = dict(manifest.identity.inputs)
    sources = {name: _source(place, digest, manifests) for name, digest in inputs.items()}
    metrics: dict[str, Curve] = {}
    samples: list[SamplesRow] = []
    try:
        metrics = _metrics(place, manifest)
        if manifest.kind == "samples":
            samples = list(islice(_samples(place), MOST_SAMPLES))
    except ColaError as error:
        problems.append(_relative_text(error, base))
    return Shown(
        label=labels[place],
        kind=manifest.kind,
        # a page that is passed around does not say who runs it, and where
        state="running" if state.startswith("running") else state,
        fingerprint=manifest.fingerprint,
        inputs=inputs,
        sources={name: labels[found] for name, found in sources.items() if found is not None},
        settings=flatten(manifest.settings) | flatten(manifest.identity.settings),
        statistics=manifest.statistics,
        bytes=sum(record.bytes for record in manifest.files) if finished else None,
        seconds=manifest.seconds,
        metrics=metrics,
        samples=samples,
    )


def _source(place: Path, digest: str, manifests: dict[Path, Manifest]) -> Path | None:
    """Which artifact an input is; of copies, the one beside `place`."""
    found = [other for other, manifest in manifests.items() if manifest.fingerprint == digest]
    return min(found, key=lambda other: (other.parent != place.parent, other), default=None)


def _metrics(place: Path, manifest: Manifest) -> dict[str, Curve]:
    """The columns of metrics.parquet as (step, value), without values that are not finite."""
    metrics = Metrics(place / METRICS)
    if manifest.status == "complete":
        artifact = Artifact.open(place)
        if not artifact.has(METRICS):
            return {}
        artifact.file(METRICS)  # whole
    elif not metrics.path.is_file():
        return {}
    metrics.read()
    curves: dict[str, Curve] = {}
    for row in metrics.rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((float(row["step"]), float(value)))
    return curves


def _samples(place: Path) -> Iterator[SamplesRow]:
    """The first continuations of a samples artifact, finished or not."""
    for _, part in sorted(recorded_parts(place).items()):
        check_file(place, part.data)
        for _, row in read_rows(place / part.file):
            yield SamplesRow.of(row, place / part.file)


def _coloured(artifacts: list[Shown]) -> list[Shown]:
    """Each artifact with a colour: its place among its kind, or the colour of the model it came from.

    Models that write text share one order, so that a prior and its baselines differ where they meet.
    """
    places: dict[str, int] = {}
    of_model: dict[str, int] = {}
    coloured = []
    for artifact in artifacts:
        source = artifact.sources.get("model")
        if source in of_model:
            colour = of_model[source]
        else:
            order = "model" if artifact.kind in WRITERS else artifact.kind
            colour = places.get(order, 0)
            places[order] = colour + 1
        of_model[artifact.label] = colour
        coloured.append(replace(artifact, colour=colour))
    return coloured
