"""pipelines/demo-model.sh in miniature, the grammar of its stories, and the model that ships."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cola_cli.corpus.chats import PLAIN, ChatTemplate, read_chat
from tests.pipelines.conftest import cola_script
from tests.pipelines.test_torchrun import PIPELINES, SETTINGS
from tests.stages.conftest import made_up_text

STORIES = [sys.executable, str(PIPELINES / "stories.py")]


@pytest.mark.slow
def test_the_demo_model_is_made_rounded_and_sampled(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(made_up_text(100))
    (tmp_path / "mini.toml").write_text(SETTINGS)
    command = cola_script(tmp_path)
    environment = os.environ | {
        "COLA": str(command),
        "PYTHON": sys.executable,
        "CORPUS": str(tmp_path / "book.txt"),
        "STORIES": "100",
        "MORE": "2",
        **{
            "STEPS": "2",
            "COUNT": "40",
            "PROMPTS": "2",
            "NEW": "8",
            "SEQ_LEN": "1024",
        },  # of chat.sh
        "SETTINGS": str(tmp_path / "mini.toml"),
        "PYTHONPATH": str(PIPELINES.parent),
        "OMP_NUM_THREADS": "1",
    }
    make = ["bash", str(PIPELINES / "demo-model.sh"), str(tmp_path / "run")]
    first = subprocess.run(make, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "Once upon a time there was" in first.stdout
    whole, rounded = (
        (tmp_path / "run" / name / "prior/model.safetensors").stat().st_size
        for name in ("prior-more", "model")
    )
    assert rounded < 0.6 * whole
    again = subprocess.run(make, env=environment, capture_output=True, text=True)
    assert again.stdout.count("up to date") == 11


@pytest.mark.slow
def test_the_candidates_of_the_recipe_are_trained_and_judged(tmp_path: Path) -> None:
    (tmp_path / "mini.toml").write_text(SETTINGS.replace("seq_len = 32", "seq_len = 96"))
    environment = os.environ | {
        "COLA": str(Path(sys.executable).with_name("cola")),
        "PYTHON": sys.executable,
        "STORIES": "100",
        "STEPS": "2",
        "TOKENS": "16",
        "SETTINGS": str(tmp_path / "mini.toml"),
        "OMP_NUM_THREADS": "1",
    }
    every = [
        "paper", "tokens", "stagger", "evidence", "copies", "block16", "self-conditioning", "ar",
    ]  # fmt: skip
    command = ["bash", str(PIPELINES / "recipe.sh"), str(tmp_path / "run"), *every]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for candidate in every:
        assert f"{candidate}, seed 66, 2 steps: sentences " in done.stdout


@pytest.mark.parametrize(("named", "what"), [("stager", "candidate"), ("quite/stagger", "VAE")])
def test_an_unknown_candidate_ends_the_recipe(tmp_path: Path, named: str, what: str) -> None:
    environment = os.environ | {"COLA": "true", "PYTHON": sys.executable, "STORIES": "10"}
    command = ["bash", str(PIPELINES / "recipe.sh"), str(tmp_path / "run"), named]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"recipe: unknown {what} {named.partition('/')[0]}\n"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A script of pipelines/ as a module; it imports others beside it."""
    monkeypatch.syspath_prepend(PIPELINES)
    return importlib.import_module


def test_a_log_is_judged_by_its_sentences_and_by_what_must_agree(
    script: Callable[[str], Any],
) -> None:
    harbour = script("harbour")
    source = random.Random(0)
    own = [{"prompt": "", "text": harbour.entry(source)} for _ in range(100)]
    assert set(harbour.judge(own).values()) == {1.0}
    wrong = {
        "prompt": "On Friday the Juno",
        "text": ", a brig from Hull, came in with tea. Her master, Captain Voss, paid six crowns for the"
        " salt. The wind was from the moon, and the brig lay by the old quay. On Friday Captain Reed sailed"
        " for Cork.",
    }
    shares = harbour.judge([wrong])
    assert shares == {"sentences": 3 / 4, "cargo": 0, "dues": 0, "captain": 0, "day": 0}


def test_stories_are_judged_by_their_sentences_names_and_things(
    script: Callable[[str], Any],
) -> None:
    stories = script("stories")
    good = {
        "prompt": "Leo was a kind painter who lived by a river. Most of all",
        "text": " he loved his green boat. There he played all day and forgot the boat. Leo was",
        "finish": "length",
    }
    bad = {
        "prompt": "Leo was a kind painter who lived by a river. Most of all",
        "text": ' he loved his green boat. "Where is my lamp?" said Anna. Leo was cry.',
        "finish": "stop",
    }
    assert stories.judge([good]) == {"sentences": 1, "stories": 1, "names": 1, "things": 1}
    shares = stories.judge([good, bad])
    assert shares == {
        "sentences": 4 / 5,  # the quotation ends in a question mark, so it is one with what follows
        "stories": 1 / 2,
        "names": 2 / 3,
        "things": 1 / 2,
    }


def test_every_story_is_by_the_grammar_and_a_wrong_word_is_not() -> None:
    written = subprocess.run([*STORIES, "50", "7"], capture_output=True, text=True, check=True)

    def share(text: str) -> str:
        command = [*STORIES, "check"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        return done.stdout

    assert "(100.0%)" in share(written.stdout)
    assert share("Leo was very sad and began to cry. Leo was very and began to cry.") == (
        "1 of 2 sentences (50.0%)\n"
    )


def test_replies_are_stories_behind_any_beginning(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = script("replies")
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"It was day {number}. Who came then? Nobody.")
    pattern = str(tmp_path / "*.txt")
    known, held_out = replies.real([pattern], False), replies.real([pattern], True)
    assert {"Who came then?", "It was day 7."} <= {*known, *held_out}
    assert {one for one in known if "day" in one}.isdisjoint(held_out)
    template = ChatTemplate((PIPELINES / "demo-chat.jinja").read_text())
    rows, written = [], []
    for messages in replies.chats(300, random.Random(0), known):
        chat = read_chat(json.dumps({"messages": messages}))
        *asked, answer = chat
        text = template.render(chat, ask=False)
        if asked[0].role == "system":
            assert text == asked[1].content + answer.content
            written.append(text)
        else:
            assert text == ChatTemplate(PLAIN).render(chat, ask=False)
            assert template.render(asked) == ChatTemplate(PLAIN).render(asked)
        rows.append({"prompt": "", "text": answer.content, "finish": "stop"})
    assert any(re.match(r"It was( day)? - [A-Z]", text) for text in written)
    assert any(text.startswith("Who came then? ") for text in written)
    monkeypatch.setattr(replies.parses, "parsed", len)
    shares = replies.judge([row for row in rows if row["text"][0] == " "])
    assert shares["sentences"] > 0.9  # but for what begins in the middle of a sentence
    nothing = replies.judge([{"prompt": "Go", "text": " ", "finish": "length"}])
    assert (nothing["answered"], nothing["ended"], nothing["stories"]) == (0, 0, 0)
