"""Models by name, for every command and for Python."""

from __future__ import annotations

from pathlib import Path

from cola_cli.artifacts.mirror import pull
from cola_cli.artifacts.stores import place_of
from cola_cli.errors import UsageError
from cola_cli.weights import hub

DEMO = "demo"


def find_model(name: str | Path) -> Path:
    """The folder of the model of this name: a path, `demo` where there is no such path, or an address
    `hf:org/name[@revision]`, which is fetched unless it is cached; or an address in an object store.

    Raises UsageError or InputError as `hub.fetch` does; a path is returned whether it exists or not.
    """
    text = str(name)
    if isinstance(name, str) and (place := place_of(name)) is not None:
        pull(place)
        return place
    if text.startswith(hub.PREFIX) and not Path(name).exists():
        return hub.fetch(text)
    return demo_model() if text == DEMO and not Path(name).exists() else Path(name)


def demo_model() -> Path:
    """The small trained model that ships with the package. Raises UsageError when it does not."""
    path = Path(__file__).parent.parent / "demo"
    if not path.is_dir():
        raise UsageError("this build of cola ships no demo model.", "Name a model of your own.")
    return path
