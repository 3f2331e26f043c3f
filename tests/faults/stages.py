"""The stages at a size that runs in moments, and what their artifacts must be, byte for byte."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cola_cli.artifacts.manifest import read_manifest
from cola_cli.training.metrics import TIMES

ORDER = (
    "tokenize", "train vae", "encode", "train prior", "sample", "train prior, joint", "distill",
    "train ar", "train vae --extend",
)  # fmt: skip
FOLDER = {
    "tokenize": "tokens", "train vae": "vae", "encode": "latents", "train prior": "prior",
    "sample": "samples", "train prior, joint": "joint", "distill": "student",
    "train ar": "ar", "train vae --extend": "extended",
}  # fmt: skip
GOES_ON_FROM = {"train vae --extend": "vae"}  # what lies at the output of a stage before it
# Of the stages that run the same loop as others, these kinds of fault alone.
SAME_LOOP = {
    "train prior, joint": ("killed before", "killed after", "killed within", "power cuts"),
    "distill": ("killed before", "killed after", "killed within", "power cuts"),
    "train ar": ("killed before", "killed after", "killed within", "power cuts"),
    "train vae --extend": (
        "killed before", "killed after", "killed within", "power cuts", "EIO", "ENOSPC", "signals",
        "two writers",
    ),
}  # fmt: skip
KIND = {folder: stage for stage, folder in FOLDER.items()}
NETWORK = {"dim": 16, "heads": 2}
VAE = {"ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1, "latent_dim": 4}
PRIOR = {"head_dim": 8, "rope_dim": 6, "layers": 1, "block_size": 8}
AR = {"head_dim": 8, "layers": 1, "ffn_dim": 32}
TRAIN = {
    "steps": 2, "batch_size": 2, "log_every": 1, "validate_every": 2, "checkpoint_every": 1,
    "keep_last": 1, "validation_sequences": 2,
}  # fmt: skip


def _sets(**sections: Mapping[str, object]) -> list[str]:
    return [
        word
        for section, values in sections.items()
        for name, value in values.items()
        for word in ("--set", f"{section}.{name}={value}" if section else f"{name}={value}")
    ]


@dataclass(frozen=True)
class Stages:
    """Inputs, and the artifacts of a quiet run, in one folder."""

    home: Path

    @property
    def other(self) -> Stages:
        """The same of another corpus."""
        return Stages(self.home / "other")

    def input(self, name: str) -> Path:
        """What a stage reads: an artifact by its folder, `corpus` or `prompts`."""
        return self.home / (name + {"corpus": ".txt", "prompts": ".jsonl"}.get(name, ""))

    def command(self, stage: str, output: Path, **changes: object) -> list[str]:
        """The arguments of `cola` for a stage; `changes` to its settings or inputs."""
        names = ("tokens", "vae", "latents", "prior", "corpus", "prompts")
        inputs: Any = {name: changes.get(name, self.input(name)) for name in names}
        settings = {name: value for name, value in changes.items() if name not in inputs}
        sizes = {"train vae": VAE, "train vae --extend": VAE, "train ar": AR}.get(stage, PRIOR)
        network = ["--device", "cpu", *_sets(model=NETWORK | sizes)]
        network += _sets(train=TRAIN | settings, optim={"lr": 4e-3, "warmup_steps": 2})
        arguments: dict[str, list[object]] = {
            "tokenize": [
                "tokenize", inputs["corpus"], "--vocab-size", 280, "--seq-len", 32,
                "--validation-fraction", 0.2,
                *_sets(**{"": {"part_bytes": 2000, "workers": 1} | settings}),
            ],
            "train vae": ["train", "vae", inputs["tokens"], *network],
            "train vae --extend": [
                "train", "vae", inputs["tokens"], *network, "--set", "train.steps=4", "--extend",
            ],
            "encode": [
                "encode", inputs["tokens"], "--vae", inputs["vae"], "--device", "cpu",
                *_sets(**{"": settings}),
            ],
            "train prior": ["train", "prior", inputs["latents"], *network],
            "train prior, joint": ["train", "prior", inputs["latents"], "--mode", "joint", *network],
            "distill": [
                "distill", inputs["prior"], inputs["latents"], "--passes", 1, "--device", "cpu",
                *_sets(train=TRAIN | settings, teacher={"steps": 2, "guidance": 1.0}),
            ],
            "train ar": ["train", "ar", inputs["tokens"], *network],
            "sample": [
                "sample", inputs["prior"], "--prompts", inputs["prompts"], "--max-new-tokens", 4,
                "--steps", 1, "--device", "cpu", *_sets(**{"": {"items_per_part": 1} | settings}),
            ],
        }  # fmt: skip
        return [str(word) for word in (*arguments[stage], "-o", output)]

    def write_inputs(self, seed: int = 0) -> None:
        """A made-up corpus and prompts."""
        source = random.Random(seed)
        words = ["Anna", "sees", "the", "old", "boat", "and", "finds", "bread", "a", "tree"]
        texts = [" ".join(source.choices(words, k=7)) + "." for _ in range(90)]
        self.home.mkdir(parents=True, exist_ok=True)
        self.input("corpus").write_text("\n\n".join(texts))
        rows = [{"id": f"p{number}", "prompt": text} for number, text in enumerate(texts[:3])]
        self.input("prompts").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(self, run: Callable[[str, list[str]], None]) -> None:
        """Write the inputs and make every artifact with `run(stage, arguments)`."""
        if not self.input("corpus").exists():
            self.write_inputs()
        for stage in ORDER:
            output = self.home / FOLDER[stage]
            self.lay(stage, output)
            run(stage, self.command(stage, output))

    def lay(self, stage: str, output: Path) -> None:
        """Put what a stage goes on from at its output."""
        if stage in GOES_ON_FROM:
            shutil.copytree(self.home / GOES_ON_FROM[stage], output)


def differences(made: Path, quiet: Path) -> tuple[list[str], int]:
    """Which files of an artifact are not those of the quiet run, and the bytes compared.

    Exempt is what tells the time: columns of metrics.parquet, seconds in the manifest; and so the digests
    of those two files. Their other content is compared.
    """
    names = {_name(path, root) for root in (made, quiet) for path in root.rglob("*")}
    different, count = [], 0
    for name in sorted(names - {".lock"}):
        one, other = made / name, quiet / name
        if one.is_dir() and other.is_dir():
            continue
        if not one.is_file() or not other.is_file():
            different.append(f"{name} is {'missing' if other.exists() else 'left over'}")
            continue
        count += other.stat().st_size
        try:
            if _comparable(one, name) != _comparable(other, name):
                different.append(f"{name} has other bytes")
        except Exception as error:
            different.append(f"{name} cannot be read ({error})")
    return different, count


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _comparable(path: Path, name: str) -> Any:
    if name == "metrics.parquet":
        table = pq.read_table(path, use_threads=False)
        return table.drop_columns([n for n in TIMES if n in table.column_names])
    if name == "manifest.json":
        document = read_manifest(path.parent).model_dump(mode="json")
        del document["seconds"], document["digest"]
        for record in document["files"]:
            if record["path"] == "metrics.parquet":
                del record["bytes"], record["sha256"]
        return document
    return path.read_bytes()


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes (None: a directory) but the lock's, to see that nothing was touched."""
    return {
        _name(path, folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
