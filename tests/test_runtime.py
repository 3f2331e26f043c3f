"""What cola says of the process it runs in."""

from __future__ import annotations

import subprocess
import sys


def test_the_peak_memory_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    large = bytearray(400 << 20)  # written to, so that this process holds it
    large[::4096] = b"1" * len(large[::4096])
    code = "from cola_cli.runtime import peak_memory; print(peak_memory())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 20 < float(shown.stdout) < 200 << 20
