"""The model that ships: small, whole, and able to write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from cola_cli.artifacts.verify import verify
from cola_cli.weights.names import demo_model
from tests.conftest import Run

PIPELINES = Path(__file__).parents[1] / "pipelines"


def share_by_the_grammar(text: str) -> float:
    """The share of the sentences of a text that the grammar of stories can write."""
    checked = subprocess.run(
        [sys.executable, PIPELINES / "stories.py", "check"],
        input=text, capture_output=True, text=True, check=True,
    )  # fmt: skip
    right, _, total, *_ = checked.stdout.split()
    return int(right) / int(total)


def test_the_demo_model_is_whole_and_at_most_25_megabytes() -> None:
    assert verify(demo_model()).findings == []
    assert sum(path.stat().st_size for path in demo_model().rglob("*")) < 25e6


def test_most_sentences_of_the_demo_model_are_by_the_grammar_of_its_stories(cola: Run) -> None:
    beginnings = ["Once upon a time there was", "Tom was a brave sailor who lived near the sea."]
    prompts = [word for beginning in beginnings for word in ("--prompt", beginning)]
    text = cola("sample", "demo", *prompts, "--max-new-tokens", "96", "--quiet").stdout
    for beginning in beginnings:
        assert beginning in text
    assert share_by_the_grammar(text) >= 0.5, text


def test_the_demo_model_obeys_instructions_that_it_has_not_seen(cola: Run, tmp_path: Path) -> None:
    script = PIPELINES / "instructions.py"
    prompts = subprocess.run(
        [sys.executable, script, "prompts", "12", "5"], capture_output=True, text=True, check=True
    )
    (tmp_path / "prompts.jsonl").write_text(prompts.stdout)
    cola("sample", "demo", "--prompts", "prompts.jsonl", "-o", "answers", "-n", "140", "--quiet")
    judged = subprocess.run(
        [sys.executable, script, "judge", tmp_path / "answers"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    obeyed = re.match(r"obeyed ([\d.]+)%", judged.stdout)
    assert obeyed, judged.stdout
    assert float(obeyed[1]) >= 80, judged.stdout


def test_the_demo_model_goes_on_from_any_beginning_with_a_story(cola: Run) -> None:
    beginnings = [
        "In the beginning God", "What is the capital of France?", "Hello", "My fellow citizens, we",
        "The king said to his people", "It rained.", "The receipts of the last year are", "Yes, but",
    ]  # fmt: skip
    asked = [word for beginning in beginnings for word in ("--prompt", beginning)]
    told = cola("sample", "demo", *asked, "--max-new-tokens", "140", "--json", "--quiet").stdout
    replies = [json.loads(line)["text"].removeprefix(" -") for line in told.splitlines()]
    assert len(replies) == len(beginnings)
    assert all(len(reply.split()) > 20 for reply in replies), replies
    assert share_by_the_grammar(" ".join(replies)) >= 0.8, told
