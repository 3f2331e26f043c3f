"""How a stage runs, apart from what it makes."""

from __future__ import annotations

from dataclasses import dataclass, field

from cola_cli.reporting import Reporter, Silent


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the command line tells every stage; nothing here enters the identity of an artifact.

    reporter: receives progress and remarks. device: cpu, cuda, cuda:1 ... or auto. threads: of the matrix
    library, None for a number of its own choice. overwrite: replace an artifact of another identity.
    """

    reporter: Reporter = field(default_factory=Silent)
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False
