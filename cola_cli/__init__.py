"""cola: continuous latent diffusion language models (arXiv 2605.06548) from the command line and Python.

`import cola_cli` is instant; `cola_cli.load` brings in torch on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cola_cli.version import __version__

if TYPE_CHECKING:
    from cola_cli.api import Baseline, Cola, load, load_baseline
    from cola_cli.stages.functions import encode, tokenize, train_prior, train_vae
    from cola_cli.stages.likelihood import score

HOMES = {
    "cola_cli.api": ("Baseline", "Cola", "load", "load_baseline"),
    "cola_cli.stages.functions": ("encode", "tokenize", "train_prior", "train_vae"),
    "cola_cli.stages.likelihood": ("score",),
}
__all__ = [
    "Baseline",
    "Cola",
    "__version__",
    "encode",
    "load",
    "load_baseline",
    "score",
    "tokenize",
    "train_prior",
    "train_vae",
]


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
