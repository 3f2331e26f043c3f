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
from cola_cli.corpus.chats import PLAIN, ChatTemplate, Message
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


TEXT = """Moses said to Aaron that it was late. He went away. Nahor became the father of Terah.

In the {n} year Asa the son
of Abijah reigned there. He said to Moses, “No.” Saul said to Saul; Dan said to Gad, and Gad said to Dan."""
KNOWN = {
    "Moses said to Aaron that it was late. Who spoke?": "Moses",
    "Moses said to Aaron that it was late. Who was spoken to?": "Aaron",
    "Nahor became the father of Terah. Who became a father?": "Nahor",
    "Nahor became the father of Terah. Who was the child?": "Terah",
}


def test_questions_on_a_text_have_the_answers_of_their_rule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(PIPELINES)
    import questions  # type: ignore[import-not-found, unused-ignore]

    for n in range(60):
        (tmp_path / f"{n:04}.txt").write_text(TEXT.format(n=n))
    learnt, held_out = (dict(questions.exchanges(tmp_path, chosen)) for chosen in (False, True))
    assert not learnt.keys() & held_out.keys()
    assert 2 <= len(held_out) <= 30
    expected = KNOWN | {
        f"In the {n} year Asa the son of Abijah reigned there. Who is the {who}?": name
        for n in range(60)
        for who, name in (("son", "Asa"), ("father", "Abijah"))
    }
    assert learnt | held_out == expected
    template = ChatTemplate(PLAIN)
    rows = [
        {"prompt": template.render([Message("user", asked)]), "text": name, "finish": "stop"}
        for asked, name in expected.items()
    ]
    assert questions.judge(rows) == {"right": 1, "ended": 1, "named": 1}
    swapped = [row | {"text": rows[n ^ 1]["text"]} for n, row in enumerate(rows)]
    assert questions.judge(swapped) == {"right": 0, "ended": 1, "named": 1}
    cut = [row | {"finish": "length"} for row in rows]
    assert questions.judge(cut) == {"right": 0, "ended": 0, "named": 1}
    longer = [row | {"text": f"{row['text']} and"} for row in rows]
    assert questions.judge(longer) == {"right": 0, "ended": 1, "named": 0}


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
