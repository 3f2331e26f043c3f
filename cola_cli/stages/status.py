"""The state of the artifacts below a directory: complete, running, abandoned, stale; lineage; what next."""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS, committed
from cola_cli.artifacts.lock import holder_of
from cola_cli.artifacts.manifest import NEW, Identity, Manifest, read_manifest
from cola_cli.artifacts.parts import PARTS
from cola_cli.artifacts.replacement import replacement
from cola_cli.artifacts.verify import find_artifacts
from cola_cli.corpus.additions import ancestors
from cola_cli.errors import ColaError
from cola_cli.families import FAMILIES, trainings
from cola_cli.stages.extend import is_longer

# The commands that use and that make an artifact; {kind} is the directory of the artifact of that kind.
NEXT = {
    "tokens": "cola train vae {path} -o VAE",
    "vae": "cola encode {tokens} --vae {path} -o LATENTS",
    "latents": "cola train prior {path} -o PRIOR",
}
NEXT_OF_WRITERS = 'cola sample {path} --prompt "..."'
AGAIN = {
    "encode": "cola encode {tokens} --vae {vae}",
    "sample": "cola sample {model}",
    "likelihood": "cola likelihood {model} --file ...",
}
RUNNING, ABANDONED = "running", "abandoned"
_NAMED = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class State:
    """One artifact as `cola status` shows it.

    replacement: state and progress of the new one that --overwrite makes to take its place; empty if none.
    """

    path: str
    kind: str
    state: str
    progress: str
    inputs: list[str]
    next: str
    replacement: str = ""

    @property
    def unfinished(self) -> bool:
        """Whether something is being made there, or was left unfinished."""
        return bool(self.replacement) or self.state.startswith((RUNNING, ABANDONED))


@dataclass(frozen=True)
class _Surveyed:
    """Manifests by directory, directories by fingerprint, and by the one before text was added."""

    manifests: dict[Path, Manifest]
    found: dict[str, Path]
    grown: dict[str, Path]


def survey(path: Path) -> list[State]:
    """The state of every artifact at or below `path`.

    `stale` means that an input was found beside it whose fingerprint is no longer the recorded one, that an
    input of it is stale, or that latents lack text that was added to their tokens; `abandoned` that it is
    unfinished and nobody writes to it. What is made from others in the same directory comes after them.
    """
    manifests: dict[Path, Manifest] = {}
    damaged: dict[Path, str] = {}
    for directory in find_artifacts(path):
        try:
            manifests[directory] = read_manifest(directory)
        except ColaError as error:
            damaged[directory] = error.problem
    found = {m.fingerprint: d for d, m in manifests.items()}
    surveyed = _Surveyed(manifests, found, _grown(manifests, found))
    order = sorted(manifests, key=lambda d: (d.parent, _generation(surveyed, d), d))
    states = [_state(surveyed, directory) for directory in order]
    states += [
        State(str(d), "?", "damaged", problem, [], f"cola verify {shlex.quote(str(d))}")
        for d, problem in damaged.items()
    ]
    return states


def _grown(manifests: dict[Path, Manifest], found: dict[str, Path]) -> dict[str, Path]:
    """Tokens to which text was added, and their latents, by the fingerprints that they had before."""
    grown: dict[str, Path] = {}
    for directory, manifest in manifests.items():
        identity = manifest.identity
        grown |= dict.fromkeys(ancestors(identity), directory)
        if tokens := found.get(identity.inputs.get("tokens", "")):
            for before in ancestors(manifests[tokens].identity):
                inputs = identity.inputs | {"tokens": before}
                grown[identity.model_copy(update={"inputs": inputs}).fingerprint] = directory
    return grown


def next_step(directory: Path) -> str:
    """The command that goes on with the artifact at `directory`, its inputs sought beside it."""
    states = {state.path: state for state in survey(directory.parent)}
    return states[str(directory)].next


def _state(surveyed: _Surveyed, directory: Path) -> State:
    manifest = surveyed.manifests[directory]
    inputs = _inputs(surveyed, manifest.identity)
    named = [f"{name} {found or '(elsewhere)'}" for name, found in inputs.items()]
    holder = holder_of(directory)
    unfinished = f"{RUNNING} ({holder})" if holder else ABANDONED
    stale = _stale(surveyed, directory)
    # the next run makes the latents of what was added, and keeps the others
    lacks = manifest.kind == "latents" and manifest.identity.inputs.get("tokens") in surveyed.grown
    if manifest.status == "complete":
        state = "complete"
        size = sum(record.bytes for record in manifest.files)
        progress = f"{size:,} bytes"
        if stale:
            state = f"stale ({', '.join(stale)} changed)"
            step = _again(surveyed, directory, manifest.identity) + " --overwrite"
        elif lacks:
            state = "stale (tokens grew)"
            step = _again(surveyed, directory, manifest.identity)
        else:
            step = _filled(_next(manifest.kind), inputs | {"path": directory})
    else:
        state = unfinished
        progress = _progress(surveyed, directory, manifest)
        step = "" if holder else _again(surveyed, directory, manifest.identity)
    new = replacement(directory)
    said = ""
    if new is not None:
        said = f"{unfinished}, {_progress(surveyed, directory / NEW, new)}"
        moving = manifest.fingerprint == new.fingerprint  # killed as the new one took its place
        how = "" if lacks or moving else "--overwrite"
        if is_longer(manifest.identity, new.identity):
            how = "--extend"
        elif ancestors(new.identity):
            how = "--add"
        step = "" if holder else f"{_again(surveyed, directory, new.identity)} {how}".rstrip()
    return State(str(directory), manifest.kind, state, progress, named, step, said)


def _inputs(surveyed: _Surveyed, identity: Identity) -> dict[str, Path | None]:
    """Where the inputs of an artifact are, perhaps with more text by now."""
    places = surveyed.grown | surveyed.found
    return {name: places.get(fingerprint) for name, fingerprint in identity.inputs.items()}


def _next(kind: str) -> str:
    """The command that uses a finished artifact of this kind; empty where none follows."""
    family = FAMILIES.get(kind)
    return NEXT_OF_WRITERS if family is not None and family.writes else NEXT.get(kind, "")


def _stale(surveyed: _Surveyed, directory: Path) -> list[str]:
    """The inputs that lie beside the artifact with another content than it was made from."""
    manifest = surveyed.manifests[directory]
    others = (m for place, m in surveyed.manifests.items() if place != directory)
    kinds = {other.kind for other in others if other.status == "complete"}
    stale = []
    for name, fingerprint in manifest.identity.inputs.items():
        found = surveyed.found.get(fingerprint)
        # an artifact's fingerprint covers its inputs, so nothing is its own ancestor
        lost = found is None and fingerprint not in surveyed.grown
        if (lost and name in kinds) or (found is not None and _stale(surveyed, found)):
            stale.append(name)
    return stale


def _generation(surveyed: _Surveyed, directory: Path) -> int:
    """How many artifacts lie between this one and those that are made from none that was found."""
    fingerprints = surveyed.manifests[directory].identity.inputs.values()
    found = [surveyed.found[one] for one in fingerprints if one in surveyed.found]
    return 1 + max((_generation(surveyed, one) for one in found), default=0)


def _again(surveyed: _Surveyed, directory: Path, identity: Identity) -> str:
    """The command that makes an artifact (again); its settings are in the manifest."""
    inputs = _inputs(surveyed, identity)
    trained = {family.stage: family.arguments for family in trainings()}
    arguments = " ".join(f"{{{kind}}}" for kind in trained.get(identity.stage, ())) or "..."
    command = AGAIN.get(identity.stage, f"cola {identity.stage} {arguments}")
    command = _filled(command + " --from {start}" * ("start" in inputs), inputs)
    return f"{command} -o {shlex.quote(str(directory))}"


def _filled(command: str, places: dict[str, Path | None]) -> str:
    """The command with the paths that were found; the others are names in capitals."""

    def place(match: re.Match[str]) -> str:
        found = places.get(match[1])
        return shlex.quote(str(found)) if found else match[1].upper()

    return _NAMED.sub(place, command)


def _progress(surveyed: _Surveyed, directory: Path, manifest: Manifest) -> str:
    """How far an unfinished artifact is."""
    train: Any = manifest.settings.get("train")
    if isinstance(train, dict) and isinstance(train.get("steps"), int):
        saved = [step for step, _ in committed(directory / CHECKPOINTS)]
        done = train["steps"] if manifest.files else max(saved, default=0)
        return f"step {done:,} of {train['steps']:,}"
    parts = len(list((directory / PARTS).glob("*.json")))
    if manifest.kind == "tokens":
        from cola_cli.corpus.survey import read_plan, scratch_of

        scratch = scratch_of(directory, manifest.fingerprint)
        with contextlib.suppress(OSError, ValueError, KeyError):  # none yet, or damaged
            return f"{parts} of {2 * len(read_plan(scratch).sizes)} parts"
        if scratch.exists():
            return f"{len(list(scratch.glob('[0-9]*.parquet')))} pieces surveyed"
    source = surveyed.found.get(manifest.identity.inputs.get("tokens", ""))
    if manifest.kind == "latents" and source is not None:
        total = sum(
            record.path.endswith(".json") and record.path.startswith(f"{PARTS}/")
            for record in surveyed.manifests[source].files
        )
        return f"{parts} of {total} parts"
    return f"{parts} parts"
