"""Stop a process at every system call that changes files, whoever makes it: Python, Arrow, Rust.

Linux's seccomp user notification: a filter in the traced process holds chosen calls until the process that
has the listener answers "go on" or "fail with this error". It needs no privilege, no debugger and no other
program, and one filter covers all threads and children.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from dataclasses import dataclass

# Numbers of the calls by machine, from the kernel's tables.
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "write": 1, "open": 2, "mmap": 9, "pwrite64": 18, "writev": 20, "sendfile": 40, "flock": 73,
        "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83,
        "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88, "openat": 257,
        "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
        "fallocate": 285, "pwritev": 296, "renameat2": 316, "copy_file_range": 326,
        "pwritev2": 328,
    },
    "aarch64": {
        "write": 64, "mmap": 222, "pwrite64": 68, "writev": 66, "sendfile": 71, "flock": 32,
        "fsync": 82, "fdatasync": 83, "truncate": 45, "ftruncate": 46, "openat": 56,
        "mkdirat": 34, "unlinkat": 35, "renameat": 38, "linkat": 37, "symlinkat": 36,
        "fallocate": 47, "pwritev": 70, "renameat2": 276, "copy_file_range": 285, "pwritev2": 287,
    },
}  # fmt: skip
SECCOMP = {"x86_64": 317, "aarch64": 277}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 1 << 3, 1 << 5
_PR_SET_NO_NEW_PRIVS = 38
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_OPEN_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_PROT_WRITE, _MAP_SHARED = 2, 1


class Unavailable(Exception):
    """This system cannot hold system calls; the reason is the message."""


@dataclass(frozen=True)
class Call:
    """A system call that a thread waits in."""

    id: int
    thread: int
    name: str
    arguments: tuple[int, ...]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    return _instruction(_LOAD, 16 + 8 * index)  # the low half; both machines are little-endian


def _notify_if(*tests: bytes) -> bytes:
    """Code that notifies when every test (each with its jump left open) holds, and allows otherwise."""
    ending = _instruction(_RETURN, _NOTIFY) + _instruction(_RETURN, _ALLOW)
    return b"".join(tests) + ending


def _block(name: str) -> bytes:
    """What to do once the number of the call has matched."""
    if name in ("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile"):
        # 0 to 2 are the terminal's: messages are no part of an artifact
        return _notify_if(_argument(0), _instruction(_GREATER, 2, 0, 1))
    if name in ("open", "openat"):
        flags = _argument(1 if name == "open" else 2)
        return _notify_if(flags, _instruction(_ANY_BIT, _OPEN_CHANGES, 0, 1))
    if name == "mmap":
        return _notify_if(
            _argument(2),
            _instruction(_ANY_BIT, _PROT_WRITE, 0, 3),
            _argument(3),
            _instruction(_ANY_BIT, _MAP_SHARED, 0, 1),
        )
    return _instruction(_RETURN, _NOTIFY)


def _program(machine: str) -> bytes:
    code = _instruction(_LOAD, 4) + _instruction(_EQUAL, AUDIT_ARCH[machine], 1, 0)
    code += _instruction(_RETURN, _ALLOW)
    for name, number in NUMBERS[machine].items():
        block = _block(name)
        code += _instruction(_LOAD, 0) + _instruction(_EQUAL, number, 0, len(block) // 8) + block
    return code + _instruction(_RETURN, _ALLOW)


def install() -> int:
    """Put the filter on this process for good; the listener's descriptor. Raises Unavailable."""
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in NUMBERS:
        raise Unavailable(f"system calls cannot be held on {platform.system()} {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise Unavailable("the system refuses PR_SET_NO_NEW_PRIVS")
    program = _program(machine)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, padding, their address
    argument = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    # Waiting must not end at a signal that is handled: a call on a file never does so by itself.
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        descriptor = libc.syscall(SECCOMP[machine], _SET_MODE_FILTER, flags, argument)
        if descriptor >= 0:
            return int(descriptor)
    raise Unavailable(f"the system refuses the filter ({os.strerror(ctypes.get_errno())})")


def receive(listener: int) -> Call | None:
    """The next call held; None when its thread has died meanwhile."""
    buffer = bytearray(80)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    identity, thread, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", buffer)
    names = {n: name for name, n in NUMBERS[platform.machine()].items()}
    return Call(identity, thread, names[number], tuple(arguments))


def go_on(listener: int, call: Call) -> None:
    """Let the kernel do what was asked."""
    _answer(listener, struct.pack("=QqiI", call.id, 0, 0, _CONTINUE))


def fail(listener: int, call: Call, error: int) -> None:
    """Let the call return this error with nothing done."""
    _answer(listener, struct.pack("=QqiI", call.id, 0, -error, 0))


def _answer(listener: int, response: bytes) -> None:
    try:
        fcntl.ioctl(listener, _SEND, response)
    except OSError as error:
        if error.errno != errno.ENOENT:  # its thread has died meanwhile
            raise
