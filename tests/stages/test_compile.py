"""A compiled training run is an uncompiled one, whatever changes from step to step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cola_cli.families import PRIOR
from cola_cli.settings.prior import PriorSettings
from cola_cli.stages.train import train
from cola_cli.training.metrics import Metrics
from tests.conftest import CPU
from tests.stages.conftest import prior_settings

HEAD = {
    "model": {
        "prediction": "tokens", "stagger": 1.0, "causal_history": True, "residual": True,
        "evidence": True,
    },
    "loss": {"next_token": 0.5, "decoder": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("mode", ["frozen", "joint", "head", "some blocks"])
def test_compiled_training_has_the_losses_of_the_other(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The compiler here only traces: what it would make code from is one graph, right for every step."""
    torch._dynamo.reset()
    traced = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        traced.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiler(module, backend=backend))
    losses = []
    for compiled in (False, True):
        base = prior_settings(
            "joint" if mode == "joint" else "frozen",
            steps=6,
            log_every=1,
            compile=compiled,
            checkpoint_every=10,
        )
        values = base.model_dump(exclude_unset=True)
        values["data"] = {"partly_clean": 0.5}
        if mode == "head":
            values["data"]["history_noise"] = 0.3
            values |= HEAD | {"model": values["model"] | HEAD["model"]}
        if mode == "some blocks":
            values["data"]["noisy_share"] = 0.1
            values["model"] |= HEAD["model"] | {"residual": False}
            values["loss"] = {"next_token": 0.5}
        settings = PriorSettings.model_validate(values)
        output = tmp_path / f"compiled-{compiled}"
        train(PRIOR, made / "latents", output, settings, CPU)
        metrics = Metrics(output / "metrics.parquet")
        metrics.read()
        losses.append([row["loss"] for row in metrics.rows if row.get("loss") is not None])
    assert len(losses[0]) == 6
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), atol=0, rtol=1e-5)
    assert len(traced) == 1  # nothing breaks the graph, no step needs another one
