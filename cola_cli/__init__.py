"""cola: continuous latent diffusion language models (arXiv 2605.06548) from the command line and Python.

`import cola_cli` is instant; `cola_cli.load` brings in torch on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cola_cli.version import __version__

if TYPE_CHECKING:
    from cola_cli.api import Baseline, Cola, load, load_baseline

__all__ = ["Baseline", "Cola", "__version__", "load", "load_baseline"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cola_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
