"""`cpu_attention.cpp`, built by this machine's C++ compiler when it is first needed.

The library is kept in the user's cache directory under a name that holds the digest of the source, the
compiler, its flags and the processor; its own digest is kept beside it. What is loaded is code, so it is
loaded only from a directory that nobody else can write, and only if its digest is right; otherwise it is
built again, for this process alone where the cache directory is not private. Where there is no compiler, or
it fails, callers use torch's own operations. CXX names the compiler and its arguments, as for other tools.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cola_cli.artifacts.files import atomic_file, write_atomic
from cola_cli.errors import ColaError

SOURCE = Path(__file__).with_name("cpu_attention.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")
BUILD_SECONDS = 120
TENSORS, SIZES = 10, 6  # the arguments of cola_block_attention, a float behind them


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
        causal: int = 0,
    ) -> Tensor:
        """What entries see, (E, n, H, d); their keys and values are stored on the way.

        qkv (E, n, 3, H, d) before norms and rotation; query_norm and key_norm (2, d), weight and bias; turns
        (E, n, 1, d / 2) complex; keys and values (slots, H, length, d). With slot >= 0 an entry's keys and
        values go behind the first `fill` of that slot, and it sees both; with slot -1 - i it sees
        only its own, which go to alone[i] (H, 2, n, d). All entries have stored before one looks. In the
        first `causal` entries a position sees none after it.
        """
        entries, n, _, heads, head_dim = qkv.shape
        out = qkv.new_empty(entries, n, heads, head_dim)
        tensors = (qkv, query_norm, key_norm, turns, keys, values, alone, slot, fill, out)
        sizes = (entries, n, heads, head_dim, keys.shape[2], causal)
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
        library = load(compiler, flags, cache_directory())
    except (ColaError, OSError, RuntimeError, subprocess.SubprocessError):
        # no compiler that works, or no directory to write in
        return None
    function = library.cola_block_attention
    function.argtypes = [*[ctypes.c_void_p] * TENSORS, *[ctypes.c_int64] * SIZES, ctypes.c_float]
    function.restype = None
    return function


def find_compiler() -> tuple[str, ...] | None:
    """The compiler's path and its arguments: CXX where it is set, else the usual names."""
    commands = [["g++"], ["c++"], ["clang++"]]
    if "CXX" in os.environ:
        commands = []
        with contextlib.suppress(ValueError):  # of a quotation that is left open
            commands = [shlex.split(os.environ["CXX"])]
    for name, *arguments in filter(None, commands):
        if path := shutil.which(name):
            return (path, *arguments)
    return None


def cache_directory() -> Path | None:
    """Where cola keeps what it has built; a relative XDG_CACHE_HOME is ignored, as the XDG rules say."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(named) if Path(named).is_absolute() else Path.home() / ".cache") / "cola"
    except RuntimeError:  # no home directory
        return None


def load(compiler: tuple[str, ...], flags: tuple[str, ...], cache: Path | None) -> ctypes.CDLL:
    """The library from `cache` if that is private, else built for this process alone.

    Raises ColaError, OSError or subprocess.SubprocessError if it cannot be built.
    """
    if cache is not None:
        with contextlib.suppress(OSError):
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_private(cache) and os.access(cache, os.W_OK):
            return ctypes.CDLL(str(built(compiler, flags, cache)))
    with tempfile.TemporaryDirectory(
        prefix="cola-"
    ) as own:  # a loaded library needs its file no longer
        return ctypes.CDLL(str(built(compiler, flags, Path(own))))


def is_private(directory: Path) -> bool:
    """Whether nobody but this user (and root) can put a file in `directory` or put another in its place.

    The directory itself must be this user's and not a link; each directory above it must belong to this
    user or root and not be writable for others, unless its sticky bit protects what lies in it.
    """
    try:
        status = os.lstat(directory)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        if status.st_mode & 0o022:
            return False
        for above in directory.resolve().parents:
            status = os.lstat(above)
            if status.st_uid not in (0, os.geteuid()):
                return False
            if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
                return False
    except OSError:
        return False
    return True


def built(compiler: tuple[str, ...], flags: tuple[str, ...], directory: Path) -> Path:
    """The library in `directory`, which must be private; built now unless a whole one is there.

    Raises ColaError or subprocess.SubprocessError if that fails.
    """
    program = Path(compiler[0]).stat()
    identity = (
        *compiler,
        program.st_size,
        program.st_mtime_ns,
        *flags,
        platform.machine(),
        _processor(),
    )
    digest = hashlib.sha256(
        SOURCE.read_bytes() + os.fsencode("\n".join(map(str, identity)))
    ).hexdigest()
    library = directory / f"block_attention-{digest[:32]}.so"
    record = library.with_suffix(".sha256")
    if _digest(library) is None or _digest(library) != _recorded(record):
        with atomic_file(library) as temporary:
            command = [*compiler, *flags, str(SOURCE), "-o", str(temporary)]
            subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
            made = _digest(temporary)
        write_atomic(record, (made or "").encode())
    return library


def _digest(file: Path) -> str | None:
    """SHA-256 of a regular file of this user's that is not a link; None if it is missing or is not one."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _recorded(record: Path) -> str | None:
    """The digest that was written when the library was built."""
    return None if _digest(record) is None else record.read_text(encoding="ascii", errors="replace")


def _processor() -> str:
    """The processor's features: a home directory may be shared by several machines."""
    try:
        with open("/proc/cpuinfo") as stream:
            return next((line for line in stream if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
