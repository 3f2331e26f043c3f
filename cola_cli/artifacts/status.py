"""The state of the artifacts below a directory: complete, running, abandoned, stale; lineage; what next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cola_cli.artifacts.artifact import PARTS
from cola_cli.artifacts.lock import holder_of
from cola_cli.artifacts.manifest import Manifest, read_manifest
from cola_cli.artifacts.verify import find_artifacts
from cola_cli.errors import ColaError

NEXT = {
    "tokens": "cola train vae {path} -o VAE",
    "vae": "cola encode TOKENS --vae {path} -o LATENTS",
    "latents": "cola train prior {path} -o PRIOR",
    "prior": 'cola sample {path} --prompt "..."',
    "autoregressive": 'cola sample {path} --prompt "..."',
    "llada": 'cola sample {path} --prompt "..."',
}


@dataclass(frozen=True)
class State:
    """One artifact as `cola status` shows it."""

    path: str
    kind: str
    state: str
    progress: str
    inputs: list[str]
    next: str


def survey(path: Path) -> list[State]:
    """The state of every artifact at or below `path`.

    `stale` means that an input was found beside it whose fingerprint is no longer the recorded one;
    `abandoned` that it is unfinished and nobody writes to it.
    """
    manifests: dict[Path, Manifest] = {}
    damaged: dict[Path, str] = {}
    for directory in find_artifacts(path):
        try:
            manifests[directory] = read_manifest(directory)
        except ColaError as error:
            damaged[directory] = error.problem
    by_fingerprint = {m.fingerprint: d for d, m in manifests.items()}
    kinds = {m.kind for m in manifests.values() if m.status == "complete"}
    states = []
    for directory, manifest in manifests.items():
        inputs = {
            name: by_fingerprint.get(fingerprint)
            for name, fingerprint in manifest.identity.inputs.items()
        }
        stale = [str(name) for name, found in inputs.items() if found is None and name in kinds]
        states.append(_state(directory, manifest, inputs, stale))
    states += [
        State(str(d), "?", "damaged", problem, [], f"cola verify {d}")
        for d, problem in damaged.items()
    ]
    return sorted(states, key=lambda state: state.path)


def _state(
    directory: Path, manifest: Manifest, inputs: dict[str, Path | None], stale: list[str]
) -> State:
    named = [f"{name} {found or '(elsewhere)'}" for name, found in inputs.items()]
    again = f"cola {manifest.identity.stage} ... -o {directory}"
    if manifest.status == "complete":
        state = f"stale ({', '.join(stale)} changed)" if stale else "complete"
        progress = f"{sum(record.bytes for record in manifest.files):,} bytes"
        step = again + " --overwrite" if stale else NEXT.get(manifest.kind, "")
        step = step.format(path=directory)
    else:
        holder = holder_of(directory)
        state = f"running ({holder})" if holder else "abandoned"
        parts = len(list((directory / PARTS).glob("*.json")))
        saved = sorted(path.name for path in (directory / "checkpoints").glob("step-*"))
        progress = saved[-1] if saved else f"{parts} parts"
        step = "" if holder else again
    return State(str(directory), manifest.kind, state, progress, named, step)
