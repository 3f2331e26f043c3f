"""Directories on disk that stages pass to one another: files, digests, a manifest. Knows nothing of torch."""

from cola_cli.artifacts.artifact import Artifact
from cola_cli.artifacts.manifest import FORMAT_VERSION, Identity, Manifest, PartRecord
from cola_cli.artifacts.output import Output, Writer
from cola_cli.artifacts.parts import PartWriter

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "Identity",
    "Manifest",
    "Output",
    "PartRecord",
    "PartWriter",
    "Writer",
]
