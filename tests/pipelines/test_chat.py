"""Instructions and their judge, and pipelines/chat.sh in miniature."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cola_cli.artifacts.verify import verify
from tests.pipelines.conftest import cola_script, small_prior
from tests.pipelines.test_torchrun import PIPELINES


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; it imports the grammar beside it."""
    monkeypatch.syspath_prepend(PIPELINES)
    import instructions  # type: ignore[import-not-found, unused-ignore]

    return instructions


def test_true_answers_obey_and_any_other_slot_is_seen(instructions: Any) -> None:
    source = random.Random(0)
    pairs = [instructions.exchange(source) for _ in range(200)]
    rows = [{"prompt": asked, "text": said, "finish": "stop"} for asked, said in pairs]
    assert set(instructions.judge(rows).values()) == {1.0}
    for slot, known in instructions.SLOTS.items():
        for row in rows[:20]:
            (own,) = instructions.mentioned(row["prompt"])[slot]
            other = next(one for one in known if one not in (own, "girl"))
            wrong = row | {"text": re.sub(rf"\b{own}\b", other, row["text"])}
            shares = instructions.judge([wrong])
            assert (shares["obeyed"], shares[slot]) == (0, 0), wrong
            doubled = row | {"text": f"{row['text']} {other} {'sailor' * (slot == 'nature')}"}
            assert instructions.judge([doubled])["obeyed"] == 0
    assert instructions.judge([rows[0] | {"finish": "length"}])["obeyed"] == 0
    swapped = [row | {"text": rows[n - 1]["text"]} for n, row in enumerate(rows)]
    assert instructions.judge(swapped)["obeyed"] < 0.05


def test_chats_and_prompts_are_drawn_from_the_seed() -> None:
    def written(*arguments: str) -> list[dict[str, str]]:
        command = [sys.executable, str(PIPELINES / "instructions.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    chats, prompts = written("chats", "30", "3"), written("prompts", "20", "3")
    assert [f"User:\n{chat['prompt']}\n\nAssistant:\n" for chat in chats[:20]] == [
        row["prompt"] for row in prompts
    ]


@pytest.mark.slow
def test_a_prior_and_its_baseline_learn_from_conversations_and_are_judged(tmp_path: Path) -> None:
    model, run = small_prior(tmp_path), tmp_path / "run"
    sizes = {"STEPS": "2", "COUNT": "40", "PROMPTS": "2", "NEW": "8", "SEQ_LEN": "1024"}
    environment = (
        os.environ
        | sizes
        | {
            "COLA": str(cola_script(tmp_path)),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(PIPELINES.parent),
        }
    )
    for up_to_date in (0, 6):
        command = ["bash", str(PIPELINES / "chat.sh"), str(run), str(model)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("up to date") == up_to_date
        assert re.search(r"^prior: obeyed 0.0%, .*\nar: obeyed|^prior: obeyed", result.stdout, re.M)
    for kind in ("tokens", "latents", "prior", "ar", "prior-answers-2", "ar-answers-2"):
        assert verify(run / kind).findings == []
