"""The real files that hostile ones are made from: small, written by cola's own stages."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

ROWS = 300  # of the Parquet corpus; its footer is made to lie about this number
TEXTS = ["First document,\nin two lines.", 'Second "quoted", with commas: ä.', "Third."]
STEP = 4  # of the training checkpoint
SETTINGS = b"""# how long and how fast
[vae.train]
steps = 60
batch_size = 8
keep_last = 2

[vae.optim]
lr = 1.5e-3
name = "muon"

[vae.model]
dim = 64
heads = 2
"""


def make_originals(folder: Path) -> Path:
    """Everything below `folder`, each kind in a directory of its own."""
    _make_corpus(folder / "corpus")
    (folder / "artifacts").mkdir(parents=True)
    _make_artifacts(folder / "artifacts")
    return folder


def _make_corpus(folder: Path) -> None:
    folder.mkdir(parents=True)
    text = ("\n\n".join(TEXTS) + "\n").encode()
    lines = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)).encode()
    (folder / "corpus.txt").write_bytes(text)
    (folder / "corpus.jsonl").write_bytes(lines)
    (folder / "corpus.txt.gz").write_bytes(gzip.compress(text, mtime=0))
    (folder / "corpus.jsonl.zst").write_bytes(
        zstandard.compress(lines[:40]) + zstandard.compress(lines[40:])
    )
    with (folder / "corpus.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["id", "text"], *enumerate(TEXTS)])
    rows = pa.table({"id": range(ROWS), "text": [TEXTS[i % 3] for i in range(ROWS)]})
    pq.write_table(rows, folder / "corpus.parquet", row_group_size=ROWS, compression="zstd")
    prompts = [{"id": "a", "prompt": "Once upon"}, {"prompt": "Two"}, {"id": 7, "prompt": ""}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    answers = [
        {"id": 1, "generate": "B. yes", "ground_truth": "yes", "choices": ["no", "yes"]},
        {"generate": "Paris", "ground_truth": "Paris", "prompt": "Where?"},
    ]
    packed = "".join(json.dumps(row) + "\n" for row in answers).encode()
    (folder / "answers.jsonl").write_bytes(packed)
    (folder / "answers.jsonl.zst").write_bytes(
        zstandard.ZstdCompressor(write_checksum=True).compress(packed)
    )
    (folder / "settings.toml").write_bytes(SETTINGS)


def _make_artifacts(folder: Path) -> None:
    # here, so that processes that only read the originals need no torch
    import torch

    from cola_cli.artifacts import Artifact
    from cola_cli.families import PRIOR, TEXT_VAE
    from cola_cli.machine.processes import ALONE
    from cola_cli.settings.encode import EncodeSettings
    from cola_cli.stages.encode import encode
    from cola_cli.stages.train import train
    from cola_cli.training import checkpoints
    from cola_cli.weights.artifact import load_prior, load_vae
    from cola_cli.weights.export import write_checkpoint
    from tests.conftest import CPU
    from tests.stages.conftest import make_tokens, prior_settings, vae_settings

    tokens = make_tokens(folder, documents=60)
    train(TEXT_VAE, tokens, folder / "vae", vae_settings(steps=2), CPU)
    encode(tokens, folder / "vae", folder / "latents", EncodeSettings(), CPU)
    train(PRIOR, folder / "latents", folder / "prior", prior_settings(steps=2), CPU)
    prior = Artifact.open(folder / "prior")
    write_checkpoint(
        folder / "released",
        load_vae(prior),
        load_prior(prior),
        prior.file("tokenizer.json").read_bytes(),
        max_shard_bytes=40_000,
    )
    tensors = {
        "model.linear.weight": torch.arange(6.0).reshape(2, 3),
        "model.linear.bias": torch.zeros(2),
        "optimizer.linear.weight:exp_avg": torch.ones(2, 3),
        "optimizer.linear.bias:step": torch.tensor(4.0),
    }
    checkpoints.write(folder / "checkpoints", STEP, tensors, {"step": STEP}, ALONE)
    checkpoints.commit(folder / "checkpoints", STEP)


if __name__ == "__main__":
    make_originals(Path(sys.argv[1]))
