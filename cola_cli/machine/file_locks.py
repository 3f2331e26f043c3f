"""The file locks of POSIX systems, or an error that says what to use where they are missing."""

from __future__ import annotations

from cola_cli.errors import UsageError

try:
    import fcntl as fcntl
except ImportError as error:
    raise UsageError(
        "cola runs on Linux and macOS; this Python has no file locks (fcntl).",
        "On Windows, use it within WSL.",
    ) from error
