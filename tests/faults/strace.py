"""A second opinion on the write points: `strace` on a `cola` that is started afresh."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.faults.points import TEMPORARY, Point
from tests.faults.stages import FOLDER, Stages, differences, fresh

TRACED = (
    "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,"
    "rmdir,open,openat,creat,ftruncate,truncate,fallocate,flock,mkdir,mkdirat,link,linkat,symlink,"
    "symlinkat,sendfile,copy_file_range"
)
SAME = {
    "pwrite64": "write", "writev": "write", "pwritev": "write", "pwritev2": "write",
    "fdatasync": "fsync", "renameat": "rename", "renameat2": "rename", "openat": "open",
    "creat": "open", "ftruncate": "truncate", "mkdirat": "mkdir", "unlinkat": "unlink",
    "copy_file_range": "copy",
}  # fmt: skip
_LINE = re.compile(r"(\w+)\((.*)\) += ")
_DESCRIPTOR = re.compile(r"(?:\d+|AT_FDCWD)<([^>]*)>")
_STRING = re.compile(r'"([^"]*)"')
_CHANGES = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC)")

Seen = Counter[tuple[str, str]]


def why_not() -> str:
    """Why strace cannot be used; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, text=True
    )
    return tried.stderr.strip() if tried.returncode else ""


def disagreements(stages: Stages, stage: str, points: list[Point], folder: Path) -> list[str]:
    """Calls that strace counts otherwise than `points`, and files that are not the quiet run's."""
    watched = fresh(folder / "w")
    stages.lay(stage, watched / FOLDER[stage])
    code = "from cola_cli.cli.main import main; main()"
    command = [sys.executable, "-c", code, *stages.command(stage, watched / FOLDER[stage])]
    log = fresh(folder / "strace") / "thread"
    options = ["-ff", "-y", "-qq", "-s", "0", "-e", f"trace={TRACED}", "-o", str(log)]
    done = subprocess.run(["strace", *options, "--", *command], capture_output=True, text=True)
    if done.returncode:
        return [f"under strace {stage} failed: {done.stderr}"]
    seen: Seen = Counter()
    for path in log.parent.iterdir():
        seen.update(_calls(path.read_text(), watched))
    known: Seen = Counter((point.call, point.path) for point in points)
    found = [
        f"{call} {path}: strace {seen[call, path]}, here {known[call, path]}"
        for call, path in sorted(seen.keys() | known.keys())
        if seen[call, path] != known[call, path]
    ]
    return found + differences(watched / FOLDER[stage], stages.home / FOLDER[stage])[0]


def _calls(text: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Call and path of each change inside the folder, named as points are."""
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        name, arguments = match[1], match[2]
        if "open" in name and not _CHANGES.search(arguments):
            continue
        kind = SAME.get(name, name)
        if kind == "unlink" and "AT_REMOVEDIR" in arguments:
            kind = "rmdir"
        bases, strings = _DESCRIPTOR.findall(arguments), _STRING.findall(arguments)
        if kind in ("write", "fsync", "flock", "fallocate", "sendfile") or name == "ftruncate":
            path = Path(bases[0]) if bases else None
        elif kind == "copy":
            path = Path(bases[1])
        else:
            path = Path(bases[-1] if bases else "/") / strings[-1]
        if path and path.is_relative_to(folder):
            yield kind, TEMPORARY.sub(".tmp", path.relative_to(folder).as_posix())
