"""`cola eval run` and `table` as a user meets them: rows that say all, resuming, paired differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cola_cli.artifacts.files import sha256_file, sha256_text
from cola_cli.artifacts.kinds import Evaluation
from cola_cli.artifacts.rows import artifact_rows, read_rows
from cola_cli.evaluation.metrics import paired_difference
from cola_cli.evaluation.scoring import SCORERS
from cola_cli.evaluation.tasks import Question, built_in_template, read_questions
from cola_cli.settings.evaluate import EvaluateSettings
from cola_cli.stages import answers
from cola_cli.stages.evaluate import comparison, run_evaluation
from tests.conftest import CPU, Run, content
from tests.stages.killing import kill_until_done
from tests.stages.test_sample import model as model  # the session's random model

DATA = Path(__file__).parent.parent.parent / "data" / "eval"
SHORT = {"steps": 2, "max_new_tokens": 6, "items_per_part": 2}
QUICK = [f"--set={name}={value}" for name, value in SHORT.items()]


def questions() -> list[Question]:
    return [
        Question(n, f"some words {n}", "first", ("first", "second"), f"item {n}") for n in range(7)
    ]


def read_answers(path: Path) -> list[dict[str, Any]]:
    return list(artifact_rows(Evaluation.open(path)))


@pytest.fixture
def answered(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the short evaluation into a folder of that name."""
    data = tmp_path / "data.jsonl"
    data.write_text("stands for the data\n")

    def run(name: str, **changes: Any) -> Path:
        settings = EvaluateSettings(**(SHORT | changes))
        run_evaluation(model, "mmlu", questions(), data, tmp_path / name, settings, CPU)
        return tmp_path / name

    return run


def test_every_row_says_how_it_was_made(
    model: Path, answered: Callable[..., Path], tmp_path: Path
) -> None:
    rows = read_answers(answered("out", seed=5, guidance=3.0))
    assert [row["id"] for row in rows] == list(range(7))
    for row, question in zip(rows, questions(), strict=True):
        assert (row["steps"], row["guidance"], row["seed"], row["dtype"]) == (2, 3.0, 5, "float32")
        assert row["prompt_sha256"] == sha256_text(question.prompt)
        assert row["data_sha256"] == sha256_file(tmp_path / "data.jsonl")
        assert (row["prompt"], row["ground_truth"]) == (question.prompt, "first")
        assert row["cut"] is False


def test_a_run_that_is_cut_short_goes_on_without_answering_again(
    answered: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_answers(answered("whole"))
    asked: list[int] = []
    stream = answers.sample_stream

    def dying(model: Any, numbered: Any, *rest: Any) -> Any:
        for count, sample in enumerate(
            s for s in stream(model, numbered, *rest) if s.finish != "running"
        ):
            if count == 5:
                raise RuntimeError("power cut")
            asked.append(sample.item)
            yield sample

    with monkeypatch.context() as patch:
        patch.setattr(answers, "sample_stream", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            answered("broken", batch_size=1)
    finished = {int(file.stem) for file in (tmp_path / "broken" / "parts").glob("*.json")}
    assert finished == {0, 1}
    asked.clear()

    def watched(model: Any, numbered: Any, *rest: Any) -> Any:
        for sample in stream(model, numbered, *rest):
            asked.append(sample.item)
            yield sample

    monkeypatch.setattr(answers, "sample_stream", watched)
    assert read_answers(answered("broken", batch_size=1)) == whole
    assert set(asked) == {4, 5, 6}


@pytest.mark.slow
def test_killed_again_and_again_the_answers_are_the_same_to_the_byte(
    cola: Run, model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"some words {n}", "ground_truth": "first"} for n in range(60)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "run", model, "--task", "squad", "--prompts", tmp_path / "p.jsonl"]
    command += [*QUICK, "--set=max_new_tokens=40", "--batch-size", 2, "-o"]
    cola(*command, "quiet")
    killed = [str(argument) for argument in [*command, tmp_path / "killed"]]
    kill_until_done(killed, "answer", kills=4, span=0.7, seed=1)
    assert content(tmp_path / "killed") == content(tmp_path / "quiet")
    assert read_answers(tmp_path / "killed") == read_answers(tmp_path / "quiet")


def test_the_command_runs_scores_and_is_then_up_to_date(
    cola: Run, model: Path, tmp_path: Path
) -> None:
    data = DATA / "obqa.jsonl"
    arguments = ("eval", "run", model, "--task", "obqa", "--data", data, "-o", "out", "-q", *QUICK)
    planned = json.loads(cola(*arguments, "--dry-run", "--json").stdout)
    assert planned["plan"]["items"] > 0
    assert planned["settings"]["max_new_tokens"]
    assert not (tmp_path / "out").exists()
    refused = cola(*arguments, expect=4)
    assert f"{data}, line 1: the prompt has" in refused.stderr  # longer than the context of 64
    arguments = (*arguments, "--set=cut_prompts=true", "--limit", "3")
    found = json.loads(cola(*arguments, "--json").stdout)  # what was refused left nothing to lose
    assert "input prompts: " in cola(*arguments[:-1], "2", expect=3).stderr
    assert (found["n"], found["cut_prompts"], found["chance"]) == (3, 3, 0.25)
    assert "up to date" in cola(*arguments).stdout
    rows = read_answers(tmp_path / "out")
    assert found["correct"] == sum(row["correct"] for row in rows)
    asked = read_questions(data, built_in_template("obqa"))
    assert [row["prompt"] for row in rows] == [question.prompt for question in asked[:3]]
    (part, _) = sorted((tmp_path / "out" / "parts").glob("*.zst"))
    scored = json.loads(cola("eval", "score", "obqa", part, "--json").stdout)
    assert scored["n"] == 2


def test_wrong_requests_are_refused(cola: Run, model: Path) -> None:
    run = ("eval", "run", model, "-o", "out", "--task")
    unknown = cola(*run, "arc", "--data", DATA / "mmlu.jsonl", expect=2).stderr
    assert all(name in unknown for name in SCORERS)
    assert "--prompts" in cola(*run, "mmlu", expect=2).stderr
    assert "missing.jsonl" in cola(*run, "mmlu", "--data", "missing.jsonl", expect=4).stderr


def test_the_table_gives_the_paired_difference(
    answered: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = answered("first"), answered("second", seed=9)
    rows = comparison([first, second])
    right = [[row["correct"] for row in read_answers(path)] for path in (first, second)]
    assert rows[0]["difference"] is None
    names = ("difference", "difference_low", "difference_high")
    assert tuple(rows[1][name] for name in names) == paired_difference(*right)


def test_different_prompts_are_not_compared(
    cola: Run, answered: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"other {n}", "ground_truth": "a", "choices": ["a", "b"]} for n in range(7)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answered("first")
    cola("eval", "run", model, "--task", "mmlu", "--prompts", "p.jsonl", "-o", "other", *QUICK)
    assert "same prompts" in cola("eval", "table", "first", "other", expect=4).stderr
    assert json.loads(cola("eval", "table", "first", "--json").stdout)["rows"][0]["n"] == 7


def test_a_line_separator_in_an_answer_does_not_break_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.zst"
    file.write_bytes(zstandard.compress('{"generate": "a\u2028b\u0085c"}\n'.encode()))
    assert [row["generate"] for _, row in read_rows(file)] == ["a\u2028b\u0085c"]
