"""Run `cola` on a terminal of its own, and press Ctrl-C there."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import time
from pathlib import Path

from tests.conftest import cola_command

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor


def on_a_terminal(
    directory: Path,
    *arguments: object,
    interrupt_at: str | None = None,
    type_at: tuple[str, str] | None = None,
    limit: float = 120.0,
) -> tuple[str, int, bool]:
    """What a terminal of 24 x 60 received, the exit code, and whether the terminal's modes are as before.

    Ctrl-C is pressed once when the text `interrupt_at`, or the file of that name, is there; `type_at` is a
    text to wait for and one to type.
    """
    command = cola_command(*arguments)
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.environ["TERM"] = "xterm-256color"
        os.environ.pop("NO_COLOR", None)
        os.execvp(command[0], command)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    before = after = termios.tcgetattr(master)
    received, pressed, end = b"", False, time.monotonic() + limit
    os.set_blocking(master, False)
    while time.monotonic() < end:
        try:
            received += os.read(master, 65536)
            after = termios.tcgetattr(master)
        except BlockingIOError:
            time.sleep(0.005)
        except OSError:  # the other side is closed
            break
        if type_at and type_at[0] in received.decode(errors="replace"):
            os.write(master, type_at[1].encode())
            type_at = None
        here = interrupt_at and (
            interrupt_at in received.decode(errors="replace") or (directory / interrupt_at).exists()
        )
        if here and not pressed:
            os.write(master, b"\x03")
            pressed = True
    os.close(master)
    _, status = os.waitpid(pid, 0)
    text = received.decode(errors="replace")
    return text, os.waitstatus_to_exitcode(status), before == after
