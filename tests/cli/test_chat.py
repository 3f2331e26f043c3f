"""cola chat in turns, and prompts that are piped into cola sample."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cola_cli.artifacts.manifest import read_manifest, write_manifest
from cola_cli.sampling.requests import Generation, Request
from cola_cli.serving.chat import Conversation
from cola_cli.weights.names import demo_model
from tests.conftest import Run
from tests.stages.terminal import on_a_terminal

LIMITS = ("-n", "8", "--quiet")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model without its chat template."""
    place = tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(demo_model(), place)
    manifest = read_manifest(place)
    statistics = manifest.statistics | {"chat_template": None}
    write_manifest(place, manifest.model_copy(update={"statistics": statistics}))
    return place


def sampled(cola: Run, tmp_path: Path, text: str, turn: int, *flags: str) -> str:
    """The continuation of a text as prompt number `turn`."""
    prompts = [json.dumps({"prompt": text if n == turn else "x"}) for n in range(turn + 1)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts))
    done = cola("sample", "demo", "--prompts", "prompts.jsonl", "--json", *LIMITS, *flags)
    return json.loads(done.stdout.splitlines()[turn])["text"]


def test_turns_continue_what_both_have_written(cola: Run, plain: Path, tmp_path: Path) -> None:
    said = "Tom was\n/seed 3\n and then\n/sed 3\n/steps 0\n/reset\nTom was\n/quit\nnever read\n"
    done = cola("chat", plain, "--json", *LIMITS, input=said)
    first, second, third = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["text"] == sampled(cola, tmp_path, "Tom was", 0)
    text = f"Tom was{first['text']} and then"
    assert second["text"] == sampled(cola, tmp_path, text, 1, "--seed", "3")
    assert third["text"] == sampled(cola, tmp_path, "Tom was", 0, "--seed", "3")
    assert first["tokens"] == 8
    assert "Did you mean seed?" in done.stderr
    assert "steps = 0 is not possible" in done.stderr


def test_an_answer_ends_before_a_stop_string(cola: Run, plain: Path) -> None:
    said = "Tom was\n/reset\n/stop  a\nTom was\n"
    done = cola(
        "chat", plain, "--json", "-n", "24", "--quiet", "--stop", "x", "--stop", "n", input=said
    )
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert (first["finish"], second["finish"]) == ("stop", "stop")
    assert "n" not in first["text"]
    assert first["text"].split("a")[0] == second["text"]


def test_a_template_writes_the_conversation(cola: Run, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (tmp_path / "chat.jinja").write_text(template)
    said = "Hello\nAgain\n"
    done = cola("chat", "demo", "--chat-template", "chat.jinja", "--json", *LIMITS, input=said)
    first, second = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    assert first == sampled(cola, tmp_path, "user: Hello\nassistant:", 0)
    text = f"user: Hello\nassistant: {first}\nuser: Again\nassistant:"
    assert second == sampled(cola, tmp_path, text, 1)


def test_a_turn_that_fails_is_not_a_part_of_what_was_said(
    cola: Run, plain: Path, tmp_path: Path
) -> None:
    said = "Tom was\ncaf\udce9\n and then\n"
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}  # as of most locales
    done = cola("chat", plain, "--json", *LIMITS, input=said, env=strict, errors="surrogateescape")
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert "is not UTF-8" in done.stderr
    assert second["text"] == sampled(cola, tmp_path, f"Tom was{first['text']} and then", 1)


def test_what_no_longer_fits_is_said_and_what_no_memory_holds_ends_one_turn(
    cola: Run, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Conversation.stream

    def filled(self: Conversation, request: Request) -> Iterator[tuple[Request, Generation]]:
        if self.settings.seed == 7:
            raise MemoryError
        return stream(self, request)

    monkeypatch.setattr(Conversation, "stream", filled)
    said = "/seed 7\nTom was\n/seed 0\n" + "a sailor " * 400 + "\n"
    done = cola("chat", plain, "--json", *LIMITS[:2], input=said)
    assert len(done.stdout.splitlines()) == 1
    assert "there is not enough memory" in done.stderr
    assert "tokens no longer fit" in done.stderr


def test_a_model_that_learnt_conversations_answers_by_its_own_template(
    cola: Run, tmp_path: Path
) -> None:
    done = cola("chat", "demo", "--json", *LIMITS, input="Hello\n")
    text = "User:\nHello\n\nAssistant:\n"
    assert json.loads(done.stdout)["text"] == sampled(cola, tmp_path, text, 0)


def test_on_a_terminal_tokens_settle_and_the_text_stays(
    cola: Run, plain: Path, tmp_path: Path
) -> None:
    """Typed, then left by Ctrl-C."""
    shown, code, _ = on_a_terminal(
        tmp_path, "chat", plain, *LIMITS, type_at=("> ", "Tom was\n"), interrupt_at="\r\n\r\n> "
    )
    assert code == 130
    assert "t = 0.50" in shown
    assert sampled(cola, tmp_path, "Tom was", 0).strip() in " ".join(shown.split())


def test_a_text_that_is_piped_in_is_a_prompt(cola: Run) -> None:
    given = cola("sample", "demo", "--prompt", "Tom was\na sailor", "--json", *LIMITS)
    # in a process of its own, whose input is a pipe
    piped = cola("sample", "demo", "--json", *LIMITS, input="Tom was\na sailor\n", env=os.environ)
    assert json.loads(piped.stdout) == json.loads(given.stdout)
    wrong = cola("sample", "demo", "-p", "x", "--prompts", "-", *LIMITS, input="x", expect=2)
    assert "either --prompt or --prompts" in wrong.stderr


def test_what_is_piped_in_must_be_text(cola: Run, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00caf\xe9")
    with open(tmp_path / "bytes") as stream:
        done = cola("sample", "demo", *LIMITS, stdin=stream, expect=4)
    assert "standard input is not UTF-8" in done.stderr


def test_without_any_prompt_the_demo_model_has_one_of_its_own(cola: Run) -> None:
    assert cola("sample", "demo", *LIMITS, input="").stdout.startswith("Tom was a brave sailor who")
