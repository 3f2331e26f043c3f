"""What the scripts are started with."""

from __future__ import annotations

import sys
from pathlib import Path


def cola_script(folder: Path) -> Path:
    """A program `cola` in `folder` that is the cola under test."""
    command = folder / "cola"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cola_cli "$@"\n')
    command.chmod(0o755)
    return command
