"""`cola doctor`: what this machine has that cola uses, each tried and not only looked up."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cola_cli.artifacts.files import write_atomic
from cola_cli.artifacts.lock import locked
from cola_cli.errors import ColaError, OutputLocked
from cola_cli.machine.threads import prepare_torch
from cola_cli.version import __version__

PACKAGE = "cola-cli"
GIGABYTE = 1e9


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    remedy: what to do where it is not as it should be; empty where it is. needed: whether cola's work depends
    on it.
    """

    name: str
    value: str
    remedy: str = ""
    needed: bool = True


def examine(directory: Path) -> list[Check]:
    """Everything, in the order in which it is read; `directory` is where artifacts would be written."""
    threads = prepare_torch()  # before torch is imported
    return [
        Check("cola", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        *_packages(),
        *_devices(),
        Check("threads", str(threads)),
        _compiled_attention(),
        _disk(directory),
    ]


def _packages() -> Iterator[Check]:
    """cola's own requirements, as its metadata declare them: a line of versions, then a line an extra."""
    groups: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires(PACKAGE) or []:
        name, _, marker = requirement.partition(";")
        found = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        package = re.match(r"[\w.-]+", name)
        if package and package[0] != PACKAGE:
            groups.setdefault(found[1] if found else "", []).append(package[0])
    for extra, names in groups.items():
        versions = {name: _version(name) for name in names}
        missing = [name for name, version in versions.items() if not version]
        listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        if not extra:
            yield Check("packages", listed, f"Install {', '.join(missing)}." if missing else "")
        elif extra != "dev":
            value = f"without {', '.join(missing)}" if missing else listed
            remedy = f"To have it: pip install '{PACKAGE}[{extra}]'" if missing else ""
            yield Check(f"extra {extra}", value, remedy, needed=False)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices() -> Iterator[Check]:
    import torch

    from cola_cli.machine.processes import pick_device

    built = torch.version.cuda or torch.version.hip
    yield Check(
        "torch", f"{torch.__version__}, built for {f'CUDA {built}' if built else 'the CPU'}"
    )
    capability = torch.backends.cpu.get_cpu_capability()
    yield Check("CPU", f"{os.cpu_count()} processors, {capability}; weights are float32 there")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        with torch.cuda.device(number):
            precision = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Check(
            f"cuda:{number}", f"{about.name}, {about.total_memory / GIGABYTE:.0f} GB, {precision}"
        )
    driver = shutil.which("nvidia-smi") is not None
    yield Check(
        "device auto",
        str(pick_device("auto")),
        "There is an NVIDIA driver, but torch does not use it: install a build of torch for it."
        if driver and not torch.cuda.is_available()
        else "",
    )


def _compiled_attention() -> Check:
    from cola_cli.sampling.fast.cpu_attention import find_compiler, library_function

    compiler = find_compiler()
    name = "C++ attention"
    slower = "Sampling on the CPU works without it, slower."
    if compiler is None:
        value, remedy = "no compiler (CXX, g++, c++, clang++)", f"Install a C++ compiler. {slower}"
        return Check(name, value, remedy, needed=False)
    if library_function() is None:
        value, remedy = f"{compiler[0]} does not build it", f"Name another with CXX. {slower}"
        return Check(name, value, remedy, needed=False)
    said = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    return Check(name, f"built by {said.partition(chr(10))[0] or compiler[0]}")


def _disk(directory: Path) -> Check:
    """Whether files are written whole and a second writer is refused, which artifacts rely on."""
    name = f"disk of {directory}"
    try:
        with tempfile.TemporaryDirectory(prefix=".cola-doctor-", dir=directory) as place:
            write_atomic(Path(place, "file"), b"synced and renamed")
            with locked(Path(place)):
                try:
                    with locked(Path(place)):
                        return Check(
                            name,
                            "flock does not lock here",
                            "Write artifacts to another file system, or see that one process writes each.",
                        )
                except OutputLocked:
                    pass
    except (OSError, ColaError) as error:
        return Check(name, " ".join(str(error).split()), "Name a directory that can be written.")
    free = shutil.disk_usage(directory).free
    return Check(name, f"fsync, rename and flock work; {free / GIGABYTE:.0f} GB free")
