"""How long training waits for its data, by torch's profiler; and tokens a second of `cola encode`."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from cola_cli.families import PRIOR, TEXT_VAE
from cola_cli.models.config import PriorConfig, PriorShape, TextVAEConfig
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.settings.vae import VAESettings
from cola_cli.stages.encode import encode
from cola_cli.stages.run import Run
from cola_cli.stages.tokenize import tokenize
from cola_cli.stages.train import train
from cola_cli.training.loop import Training
from cola_cli.training.reader import WAITING

VOCABULARY = 2048
# two layers of width 256 each way
VAE = {"encoder_layers": 2, "decoder_layers": 2, "dim": 256, "ffn_dim": 1024, "heads": 4}
STEP = "bench::step"


def read_and_encode(
    device: str, rows: int, length: int, prior: PriorConfig, steps: int
) -> dict[str, float]:
    """Train the prior on real shards; the share of its steps spent waiting, and how fast they were made."""
    words = ["".join(random.Random(i).choices("etaoinshrdlu", k=2 + i % 7)) for i in range(4000)]
    source = random.Random(0)
    text = "\n\n".join(" ".join(source.choices(words, k=120)) for _ in range(20 * rows))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus.txt").write_text(text)
        packing = {"vocab_size": VOCABULARY, "seq_len": length, "validation_fraction": 0.1}
        settings = TokenizeSettings.model_validate(packing)
        tokenize([str(folder / "corpus.txt")], folder / "tokens", settings)
        once = {"steps": 1, "batch_size": 2, "validation_sequences": 1}
        vae = VAESettings.model_validate({"model": VAE, "train": once})
        train(TEXT_VAE, folder / "tokens", folder / "vae", vae, Run(device=device))
        # the second time all is compiled, imported and allocated
        for turn in ("first", "second"):
            begin = time.perf_counter()
            made = encode(
                folder / "tokens",
                folder / "vae",
                folder / turn,
                EncodeSettings(),
                Run(device=device),
            )
            seconds = time.perf_counter() - begin
        model = prior.model_dump(include={*PriorShape.model_fields})
        sizes = {"steps": steps, "batch_size": rows, "validation_sequences": 1}
        chosen = PriorSettings.model_validate({"model": model, "train": sizes})
        share = _waiting_share(folder / "second", folder / "prior", chosen, device)
    return {
        "reader_share": share,
        "encode_tokens_per_second": made.statistics["rows"] * length / seconds,
    }


def _waiting_share(latents: Path, output: Path, settings: PriorSettings, device: str) -> float:
    """Waiting over all time in `Training._train`'s steps, but for the first, which starts the reader."""
    update = Training._update
    profiler = profile(activities=[ProfilerActivity.CPU])
    seconds: list[float] = []

    def timed(self: Training, step: Any) -> None:
        if step.number == 1:
            profiler.start()
            seconds.append(time.perf_counter())
        update(self, step)
        if step.number + 1 == settings.train.steps:
            seconds.append(time.perf_counter())
            profiler.stop()

    Training._update = timed  # type: ignore[method-assign]
    try:
        train(PRIOR, latents, output, settings, Run(device=device))
    finally:
        Training._update = update  # type: ignore[method-assign]
    waited = sum(e.cpu_time_total for e in profiler.key_averages() if e.key == WAITING)
    return waited / 1e6 / (seconds[1] - seconds[0])


def encoder_size() -> int:
    """Weights of the VAE that encodes."""
    return TextVAEConfig.model_validate(VAE | {"vocab_size": VOCABULARY}).parameter_count()
