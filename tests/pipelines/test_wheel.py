"""The wheel as others install it: with what it requires alone, and with each extra alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import cola_command
from tests.stages.conftest import made_up_text

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
Command = Callable[..., subprocess.CompletedProcess[str]]


def closure(requirements: Iterable[str]) -> set[str]:
    """The installed distributions that these requirements bring, and theirs."""
    found: set[tuple[str, str]] = set()
    left = [(Requirement(one), "") for one in requirements]
    while left:
        requirement, extra = left.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in found:
                found.add((name, wanted))
                own = importlib.metadata.distribution(name).requires or []
                left += [(Requirement(one), wanted) for one in own]
    return {name for name, _ in found}


def link(names: Iterable[str], place: Path) -> Path:
    """A directory of the packages of these distributions, and of no others."""
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
        for top in sorted(tops):
            if not (place / top).exists():
                (place / top).symlink_to(distribution.locate_file(top))  # type: ignore[arg-type]
    return place


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of `pip install cola_cli-*.whl`, with links to the requirements installed here."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", place, ROOT]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = place.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    here = ["--python", place / "venv/bin/python"]
    subprocess.run([*pip, *here, "install", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = (place / "venv/lib").glob("python*/site-packages")
    link(closure(required()), packages)
    return place


def required(extra: str = "") -> list[str]:
    """What cola requires, or what an extra of it does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: list[str] = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return found


@pytest.fixture
def cola(installed: Path, tmp_path: Path) -> Command:
    """The command of the wheel; extra: one that is installed as well."""

    def run(*words: object, extra: str = "", expect: int = 0) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [installed / "venv/bin/cola", *map(str, words)], cwd=tmp_path, text=True,
            capture_output=True, stdin=subprocess.DEVNULL, env=environment(installed, extra),
        )  # fmt: skip
        assert result.returncode == expect, result.stdout + result.stderr
        assert "a fault in cola" not in result.stderr
        return result

    return run


def environment(installed: Path, extra: str) -> dict[str, str]:
    """The variables of a process with an extra, which must be installed here."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COLA_"))}
    if not extra:
        return plain
    try:
        names = closure(required(extra)) - closure(required())
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"{error} is not installed")
    assert names
    return plain | {"PYTHONPATH": str(link(names, installed / extra))}


def test_without_extras_the_model_that_ships_writes_and_is_whole(cola: Command) -> None:
    assert "tokenize" in cola("--help").stdout
    assert f"torch {importlib.metadata.version('torch')})" in cola("--version").stdout
    assert cola("sample", "demo", "-n", 8).stdout.startswith("Tom was a brave sailor who ")
    assert "complete" in cola("verify", "demo").stdout
    assert "No such option: --stepz" in cola("sample", "demo", "--stepz", 3, expect=2).stderr
    assert "not a directory" in cola("verify", "nothing", expect=4).stderr


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("serve", ("serve", "demo")),
        ("log", ("log", "demo", "--to", "tensorboard")),
        ("wandb", ("log", "demo", "--to", "wandb")),
        ("trackio", ("log", "demo", "--to", "trackio")),
        ("mlflow", ("log", "demo", "--to", "mlflow")),
        ("judge", ("eval", "text", "t.jsonl", "--reference", "t.jsonl", "--judge", "judge")),
    ],
)
def test_what_needs_an_extra_names_it(
    cola: Command, tmp_path: Path, extra: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 0, "prompt": "a", "text": "b"}\n' * 2)
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/config.json").write_text("{}")
    assert f"'cola-cli[{extra}]'" in cola(*command, expect=2).stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with metrics of two steps."""
    place = tmp_path_factory.mktemp("trained")
    (place / "text.txt").write_text(made_up_text(200, 0))
    for command in (
        ("tokenize", "text.txt", "-o", "tokens", "--vocab-size", 300, "--seq-len", 32),
        (
            "train", "ar", "tokens", "-o", "ar", "--set", "train.steps=2", "--set", "model.dim=16",
            "--set", "train.log_every=1", "--set", "model.heads=1", "--device", "cpu",
        ),
    ):  # fmt: skip
        subprocess.run(cola_command(*command), cwd=place, check=True)
    return place / "ar"


@pytest.mark.parametrize("extra", ["log", "wandb", "trackio", "mlflow"])
def test_a_logger_with_its_extra_alone(
    cola: Command, trained: Path, tmp_path: Path, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    name = "tensorboard" if extra == "log" else extra
    done = cola("log", trained, "--to", name, extra=extra)
    assert "2 rows" in done.stdout
    assert "left out" not in done.stderr


def test_the_server_with_its_extra_alone(cola: Command, installed: Path, tmp_path: Path) -> None:
    serving = subprocess.Popen(
        [installed / "venv/bin/cola", "serve", "demo", "--port", "0"], cwd=tmp_path, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(installed, "serve"),
    )  # fmt: skip
    try:
        assert serving.stderr is not None
        address = next(w for line in serving.stderr for w in line.split() if w.startswith("http"))
        body = json.dumps({"model": "demo", "prompt": "Tom was", "max_tokens": 4}).encode()
        asked = urllib.request.Request(
            f"{address.rstrip('/')}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert json.loads(answer.read())["choices"][0]["text"]
    finally:
        serving.terminate()
        serving.wait()


def test_the_harness_knows_cola_with_its_extra_alone(installed: Path) -> None:
    python, module = installed / "venv/bin/python", "cola_cli.evaluation.harness"
    missing = subprocess.run(
        [python, "-m", module], env=environment(installed, ""), capture_output=True, text=True
    )
    assert missing.returncode == 2
    assert missing.stderr.endswith("Install it: pip install 'cola-cli[lm-eval]'\n")
    code = "import cola_cli.evaluation.harness as h; print(h.ColaLM('demo').max_length)"
    run = [python, "-c", code]
    done = subprocess.run(
        run, env=environment(installed, "lm-eval"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1
