"""The one metric that says most about an artifact, by its kind."""

from __future__ import annotations

from typing import Any

from cola_cli.report.collect import Shown
from cola_cli.report.quantities import count, number, percent


def key_metric(artifact: Shown) -> str:
    """A few words from the manifest's statistics; empty when they say nothing."""
    found = artifact.statistics
    if artifact.kind == "tokens":
        return _with(found, "tokens", lambda value: f"{count(value)} tokens")
    if artifact.kind == "vae":
        return _with(found, "validation_accuracy", lambda value: f"{percent(value)} reconstructed")
    if artifact.kind == "latents":
        shape = found.get("latent_shape")
        rows = found.get("rows")
        if isinstance(shape, list) and len(shape) == 2 and isinstance(rows, int):
            return f"{rows:,} × {shape[0]} × {shape[1]}"
        return ""
    if artifact.kind == "samples":
        return _with(found, "prompts", lambda value: f"{count(value)} prompts")
    if artifact.kind == "evaluation":
        return _with(found, "accuracy", percent)
    if "validation_flow" in found:
        return _with(found, "validation_flow", lambda value: f"flow loss {number(value)}")
    return _with(found, "validation_loss", lambda value: f"validation loss {number(value)}")


def _with(found: dict[str, Any], name: str, say: Any) -> str:
    value = found.get(name)
    return say(value) if isinstance(value, int | float) else ""
