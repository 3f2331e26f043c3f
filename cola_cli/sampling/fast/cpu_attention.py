"""`cpu_attention.cpp`, built by this machine's C++ compiler when it is first needed.

The library is kept in the user's cache directory under a name made from the source, the compiler and the
processor. Where there is no compiler, or it fails, callers have torch's own operations. CXX names the
compiler, as for other tools.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cola_cli.artifacts.files import atomic_file
from cola_cli.errors import ColaError

SOURCE = Path(__file__).with_name("cpu_attention.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")
BUILD_SECONDS = 120
TENSORS, SIZES = 10, 5  # the arguments of cola_block_attention, a float behind them


class BlockAttention:
    """Attention of blocks of n positions over a cache of keys and values, float32 on a CPU."""

    def __init__(self, function: Callable[..., None], eps: float) -> None:
        """eps: of the norms of queries and keys."""
        self._function, self._eps = function, eps

    def __call__(
        self,
        qkv: Tensor,
        query_norm: Tensor,
        key_norm: Tensor,
        turns: Tensor,
        keys: Tensor,
        values: Tensor,
        alone: Tensor,
        slot: Tensor,
        fill: Tensor,
    ) -> Tensor:
        """What entries see, (E, n, H, d); their keys and values are stored on the way.

        qkv (E, n, 3, H, d) before norms and rotation; query_norm and key_norm (2, d), weight and bias; turns
        (E, n, 1, d / 2) complex; keys and values (slots, H, length, d). With slot >= 0 an entry's keys and
        values go behind the first `fill` of that slot, and it sees both; with slot -1 - i it sees
        only its own, which go to alone[i] (H, 2, n, d). All entries have stored before one looks.
        """
        entries, n, _, heads, head_dim = qkv.shape
        out = qkv.new_empty(entries, n, heads, head_dim)
        tensors = (qkv, query_norm, key_norm, turns, keys, values, alone, slot, fill, out)
        sizes = (entries, n, heads, head_dim, keys.shape[2])
        self._function(*[tensor.data_ptr() for tensor in tensors], *sizes, self._eps)
        return out


def block_attention(weight: Tensor, n: int, head_dim: int, eps: float) -> BlockAttention | None:
    """The compiled attention where it serves blocks of n positions of a network with this weight."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32
    if not fits or n % 4 or head_dim % 16:
        return None
    function = library_function()
    return None if function is None else BlockAttention(function, eps)


@functools.cache
def library_function() -> Callable[..., None] | None:
    """`cola_block_attention`, built if it was not; None where it cannot be."""
    if sys.platform == "win32" or not (compiler := find_compiler()):
        return None
    flags = (*FLAGS, *(["-fopenmp"] if sys.platform == "linux" else []))
    try:
        library = ctypes.CDLL(str(built(compiler, flags, cache_directory())))
    except (ColaError, OSError, RuntimeError, subprocess.SubprocessError):
        # no compiler that works, no home directory, or none to write in
        return None
    function = library.cola_block_attention
    function.argtypes = [*[ctypes.c_void_p] * TENSORS, *[ctypes.c_int64] * SIZES, ctypes.c_float]
    function.restype = None
    return function


def find_compiler() -> str | None:
    """CXX where it is set, else the usual names."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "c++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def cache_directory() -> Path:
    """Where cola keeps what it has built, see the XDG base directories."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cola"


def built(compiler: str, flags: tuple[str, ...], directory: Path) -> Path:
    """The library, built now if need be. Raises ColaError or subprocess.SubprocessError if that fails."""
    source = SOURCE.read_bytes()
    identity = "\n".join((compiler, *flags, platform.machine(), _processor()))
    digest = hashlib.sha256(source + identity.encode()).hexdigest()
    library = directory / f"block_attention-{digest[:16]}.so"
    if not library.exists():
        with atomic_file(library) as temporary:
            command = [compiler, *flags, str(SOURCE), "-o", str(temporary)]
            subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
    return library


def _processor() -> str:
    """What the processor can do: a home directory may be that of several machines."""
    try:
        with open("/proc/cpuinfo") as stream:
            return next((line for line in stream if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
