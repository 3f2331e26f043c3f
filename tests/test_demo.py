"""The model that ships: small, whole, and able to write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cola_cli.artifacts.verify import verify
from cola_cli.weights.names import demo_model
from tests.conftest import Run

STORIES = Path(__file__).parents[1] / "pipelines" / "stories.py"


def test_the_demo_model_is_whole_and_at_most_25_megabytes() -> None:
    assert verify(demo_model()).findings == []
    assert sum(path.stat().st_size for path in demo_model().rglob("*")) < 25e6


def test_most_sentences_of_the_demo_model_are_by_the_grammar_of_its_stories(cola: Run) -> None:
    beginnings = ["Once upon a time there was", "Tom was a brave sailor who lived near the sea."]
    prompts = [word for beginning in beginnings for word in ("--prompt", beginning)]
    text = cola("sample", "demo", *prompts, "--max-new-tokens", "96", "--quiet").stdout
    for beginning in beginnings:
        assert beginning in text
    checked = subprocess.run(
        [sys.executable, STORIES, "check"], input=text, capture_output=True, text=True, check=True
    )
    right, _, total, *_ = checked.stdout.split()
    assert int(right) >= int(total) / 2, text
