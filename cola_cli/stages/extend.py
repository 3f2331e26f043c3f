"""--extend: a longer run goes on from the state that a shorter one of the same settings left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cola_cli.artifacts import Identity
from cola_cli.artifacts.artifact import is_artifact
from cola_cli.artifacts.checkpoint_folders import CHECKPOINTS, committed
from cola_cli.artifacts.manifest import Manifest, read_manifest
from cola_cli.errors import OutputConflict
from cola_cli.settings.training import Optimizer
from cola_cli.training.schedule import early_blocks, learning_rate, shared_steps

EXTENDED = "extended"  # the input of a run whose learning rate is not that of a run planned so long


@dataclass(frozen=True)
class Beginning:
    """Where a run begins.

    identity: of what it makes. checkpoint: step and place of that of a shorter run that it goes on from, if
    any. environment: of that run. remark: what may surprise, such as how the learning rate changes.
    """

    identity: Identity
    checkpoint: tuple[int, Path] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    remark: str = ""


def beginning(
    path: Path, identity: Identity, optim: Optimizer, extend: bool, ways: str
) -> Beginning:
    """The beginning of the run that is to make `identity` at `path`, where a shorter one may lie.

    ways: what else a message advises. Raises OutputConflict when a shorter run lies there and `extend` is
    not asked for, or when it is and what lies there cannot be extended.
    """
    plain = Beginning(identity)
    first = replace(plain, remark=f"{path} holds no run to extend yet: this one begins." * extend)
    old = read_manifest(path) if is_artifact(path) else None
    if old is None:
        return first
    if extend and EXTENDED in old.identity.inputs:
        inputs = identity.inputs | {EXTENDED: old.identity.inputs[EXTENDED]}
        plain = Beginning(identity.model_copy(update={"inputs": inputs}))
    saved = committed(path / CHECKPOINTS)
    if old.fingerprint == plain.identity.fingerprint:
        return plain
    if not saved and old.status != "complete":  # it failed before it had anything to go on from
        return first
    found = (
        _continued(path, old, plain.identity, optim) if is_longer(old.identity, identity) else None
    )
    if found is not None and extend:
        return found
    if found is not None:
        raise OutputConflict(
            f"{path} holds a run of {_steps(old.identity):,} steps, and {_steps(identity):,} are asked for.",
            f"Give --extend to go on from its state, --overwrite to begin again, or another output.{ways}",
        )
    if extend:
        raise OutputConflict(
            f"{path} cannot be extended: {_why_not(old, plain.identity, bool(saved))}.",
            f"Choose another output directory, or give --overwrite to begin again.{ways}",
        )
    return plain


def is_longer(old: Identity, new: Identity) -> bool:
    """Whether `new` is a run as `old` but of more steps."""
    return _but_length(old) == _but_length(new) and _steps(new) > _steps(old)


def _continued(path: Path, old: Manifest, identity: Identity, optim: Optimizer) -> Beginning | None:
    """The beginning at the newest checkpoint at `path` that a run planned so long would have made too.

    Else at the last one of a finished run; None when there is no such checkpoint.
    """
    steps, planned = _steps(identity), _steps(old.identity)
    saved = committed(path / CHECKPOINTS)
    begun, asked = (early_blocks(_curriculum(identity), length) for length in (planned, steps))
    shared = shared_steps(optim, planned)
    if common := [one for one in saved if begun == asked and one[0] <= shared]:
        return Beginning(identity, common[-1], old.environment)
    if not saved or old.status != "complete":
        return None
    step, _ = saved[-1]
    changes = []
    if shared < planned:
        before = learning_rate(step - 1, optim, planned)
        after = learning_rate(step, optim, steps)
        changes.append(
            f"learning rate {before:.2e} at step {step:,}, {after:.2e} after it: {optim.schedule} falls to"
            f" step {steps:,} now"
        )
    if begun != asked:
        changes.append(f"block_curriculum {begun} would be {asked}")
    remark = f"{', '.join(changes)}, so the result is not that of a run planned so long"
    inputs = identity.inputs | {EXTENDED: old.fingerprint}
    changed = identity.model_copy(update={"inputs": inputs})
    return Beginning(changed, saved[-1], old.environment, remark)


def _why_not(old: Manifest, new: Identity, saved: bool) -> str:
    if not is_longer(old.identity, new):
        return "; ".join(old.identity.differences(new))
    if not saved:
        return "it holds no state (made without train.keep_state, or dropped by a repair)"
    return "it is unfinished, and its learning rate falls towards another end; finish it first"


def _curriculum(identity: Identity) -> Sequence[Sequence[int]]:
    data = identity.settings.get("data")
    return data.get("block_curriculum", ()) if isinstance(data, dict) else ()


def _steps(identity: Identity) -> int:
    train = identity.settings.get("train")
    return int(train.get("steps", 0)) if isinstance(train, dict) else 0


def _but_length(identity: Identity) -> Identity:
    """An identity without the length of the run."""
    train = identity.settings.get("train")
    settings = dict(identity.settings)
    if isinstance(train, dict):
        settings["train"] = {name: value for name, value in train.items() if name != "steps"}
    inputs = {name: digest for name, digest in identity.inputs.items() if name != EXTENDED}
    return identity.model_copy(update={"settings": settings, "inputs": inputs})
