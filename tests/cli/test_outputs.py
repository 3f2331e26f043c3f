"""No command harms what it reads: outputs that are, lie in or hold an input are refused."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cola_cli.cli.main import app
from tests.conftest import Run
from tests.test_format1 import COMMANDS, HERE

CONFIG = "settings.toml"
INPUTS = {  # of each command of format 1's run
    "tokens": ("corpus.txt", CONFIG),
    "vae": ("tokens", CONFIG),
    "latents": ("tokens", "vae"),
    "prior": ("latents", CONFIG),
    "ar": ("tokens", CONFIG),
    "llada": ("tokens", CONFIG),
    "samples": ("prior", "prompts.jsonl"),
    "answers": ("prior", "lambada.jsonl"),
    "export": ("prior",),
    "import": ("released",),
    "matched": ("tokens", "prior"),
    "given": ("corpus.txt", "vae/tokenizer.json"),
    "confirmed": ("latents", "vae"),
    "cloze": ("tokens",),
}
FURTHER = {
    "export": ("export", "prior"),
    "import": ("import", "released"),
    "matched": ("train", "ar", "tokens", "--match", "prior"),
    "given": ("tokenize", "corpus.txt", "--tokenizer", "vae/tokenizer.json"),
    "confirmed": ("train", "prior", "latents", "--vae", "vae"),
    "cloze": ("eval", "cloze", "tokens"),
}
SINGLE = ("cloze", "export")  # commands without --overwrite


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harm") / "run"
    shutil.copytree(HERE / "run", path)
    shutil.copy(HERE / CONFIG, path)
    for name in {name for names in INPUTS.values() for name in names}:
        (path / f"link to {Path(name).name}").symlink_to(path / name)
    return path


def snapshot(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def outputs(name: str) -> Iterator[str]:
    yield name
    yield f"./{name}/../{Path(name).name}" if Path(name).suffix == "" else f"./{name}"
    yield f"link to {Path(name).name}"
    yield f"{name}/new/deeper"
    yield f"link to {Path(name).name}/parts"
    yield "."
    yield ".."


@pytest.mark.parametrize("command", INPUTS)
def test_an_output_that_would_harm_an_input_is_refused(
    run: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    before = snapshot(run)
    words = [str(word).replace(str(HERE), ".") for word in {**COMMANDS, **FURTHER}[command]]
    for name in INPUTS[command]:
        for output in outputs(name):
            for more in ((),) if command in SINGLE else ((), ("--overwrite",)):
                result = CliRunner().invoke(app, [*words, "-o", output, *more])
                said = (result.exit_code, result.stderr)
                assert result.exit_code == 2, (command, output, more, said)
                assert "input" in result.stderr, (command, output, said)
                assert "--overwrite" not in result.stderr
    assert snapshot(run) == before


ELSEWHERE = ("hf://datasets/x", "hf:org/name", "file:///tmp/x", "x://y")


@pytest.mark.parametrize(
    ("command", "place"),
    [
        *itertools.product([*INPUTS, "report", "study", "fetch"], ELSEWHERE),
        # an artifact may lie there: tests/stores
        *itertools.product(["export", "cloze", "report", "study", "fetch"], ["s3://bucket/x"]),
    ],
)
def test_an_output_elsewhere_than_on_disk_is_refused(
    run: Path, command: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    known = {
        **COMMANDS,
        **FURTHER,
        "report": ("report", "prior"),
        "study": ("study", "run", CONFIG),
        "fetch": ("eval", "fetch", "lambada"),
    }
    before = snapshot(run)
    words = [str(word).replace(str(HERE), ".") for word in known[command]]
    result = CliRunner().invoke(app, [*words, "-o", place])
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert ("://" if "://" in place else "on the hub") in result.stderr
    assert snapshot(run) == before


SINGLE_FILES = {
    "report": ("report", ".", "-o"),
    "chart": ("study", "plot", "study", "-o"),
    "noise": ("diagnose", "vae", "vae", "--tokens", "tokens", "--plot"),
    "passages": ("eval", "cloze", "latents/../tokens", "-o"),
}


@pytest.mark.parametrize("command", SINGLE_FILES)
def test_a_file_is_written_neither_over_an_input_nor_into_an_artifact(
    run: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    shutil.copytree(run, work, symlinks=True)
    monkeypatch.chdir(work)
    (work / "study").mkdir()
    (work / "study/study.json").write_text("{}")
    (work / "dangling").symlink_to("nowhere")
    (work / "device").symlink_to("/dev/null")
    before = snapshot(work)
    places = ["tokens", "vae/new.html", "tokens/parts/00000.json", "vae/deeper/x", "link to vae/x",
              "dangling", "device"]  # fmt: skip
    if command != "passages":  # which begin as any JSONL does
        places += ["study/study.json", "settings.toml", "corpus.txt"]
    for place in places:
        result = CliRunner().invoke(app, [*SINGLE_FILES[command], place])
        said = (command, place, result.stderr, result.exception)
        assert result.exit_code in (2, 3), said
        assert place.rpartition("/")[2] in result.stderr, said
        assert snapshot(work) == before
        assert (work / "dangling").is_symlink()
        assert (work / "device").is_symlink()


MISTAKES = {
    "tokens": ("tokenize", "prompts.jsonl", "--text-field", "typo"),
    "vae": ("train", "vae", "unsplit", "--preset", "tiny"),
    "samples": ("sample", "prior", "--prompt", "long " * 500),
    "answers": ("eval", "run", "prior", "--task", "lambada", "--data", "long.jsonl"),
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_under_overwrite_costs_nothing(
    run: Path, cola: Run, command: str, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(run, work)
    (work / "long.jsonl").write_text('{"id": "a", "text": "%s end"}\n' % ("long " * 500))
    cola("tokenize", "corpus.txt", "-o", "unsplit", "--vocab-size", "300", "--seq-len", "16",
         "--validation-fraction", "0", cwd=work)  # fmt: skip
    before = snapshot(work)
    result = cola(*MISTAKES[command], "-o", command, "--overwrite", cwd=work, expect=None)
    assert result.returncode in (2, 4), result.stderr
    after = snapshot(work)
    assert {p: d for p, d in after.items() if p.name != ".lock"} == {
        p: d for p, d in before.items() if p.name != ".lock"
    }
