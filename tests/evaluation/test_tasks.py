"""Task data, templates and converters: prompts against ones written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cola_cli.errors import InputError
from cola_cli.evaluation.convert import convert
from cola_cli.evaluation.scoring import SCORERS, Item, score
from cola_cli.evaluation.tasks import (
    Template,
    built_in_template,
    read_questions,
    read_ready_questions,
    read_template,
)

DATA = Path(__file__).parent.parent.parent / "data" / "eval"
SHOTS = {"lambada": 0, "race": 1, "squad": 1}  # the published number of worked examples, else 2


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("task", SCORERS)
def test_the_sample_data_of_every_task_becomes_prompts_that_score_right(task: str) -> None:
    template = built_in_template(task)
    questions = read_questions(DATA / f"{task}.jsonl", template)
    assert len(template.examples) == SHOTS.get(task, 2)
    assert len(questions) >= 4
    for question in questions:
        assert question.prompt == question.prompt.rstrip()
        answered = Item(
            f" {question.ground_truth}\n\nmore", question.ground_truth, question.choices
        )
        assert score(task, answered).correct


def test_a_multiple_choice_prompt_is_the_described_one() -> None:
    template = Template(
        item="Question: {question}\n{options}\nAnswer:",
        examples=({"question": "1+1?", "choices": ["2", "3"], "answer": "2"},),
    )
    assert template.prompt({"question": "Up?", "choices": ["no", "{text}"], "answer": "no"}) == (
        "Question: 1+1?\n(A) 2\n(B) 3\nAnswer: 2\n\nQuestion: Up?\n(A) no\n(B) {text}\nAnswer:"
    )


def test_braces_of_the_data_stay_as_they_are(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", {"text": "set {x} of {text}", "answer": "y"})
    assert read_questions(file, Template(item="{text}"))[0].prompt == "set {x} of {text}"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a", "choices": ["b", "c"]}, "'answer' is missing"),
        ({"choices": ["b", "c"], "answer": "b"}, "'question' is missing"),
        ({"question": "a", "choices": ["b", "c"], "answer": "d"}, "not one of the choices"),
        ({"question": "a", "choices": ["b"], "answer": "b"}, "has 1 choices"),
        ({"question": "a", "choices": "bc", "answer": "b"}, "not a list of texts"),
    ],
)
def test_an_item_that_lacks_something_is_an_error_that_names_its_line(
    tmp_path: Path, row: dict[str, object], said: str
) -> None:
    good = {"question": "a", "choices": ["b", "c"], "answer": "b"}
    file = write(tmp_path / "d.jsonl", good, row)
    with pytest.raises(InputError, match=f"line 2.*{said}"):
        read_questions(file, built_in_template("mmlu"))


def test_missing_and_empty_data_and_doubled_ids_are_errors(tmp_path: Path) -> None:
    template = Template(item="{text}")
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl", template)
    with pytest.raises(InputError, match="holds no items"):
        read_questions(write(tmp_path / "empty.jsonl"), template)
    row = {"id": 7, "text": "a", "answer": "b"}
    with pytest.raises(InputError, match=r"line 2.*7.*line 1"):
        read_questions(write(tmp_path / "twice.jsonl", row, row), template)


def test_ready_prompts_are_asked_verbatim(tmp_path: Path) -> None:
    row = {"id": "x", "prompt": " {text}\nEnd:", "ground_truth": "b", "choices": ["a", "b"]}
    (question,) = read_ready_questions(write(tmp_path / "p.jsonl", row))
    assert (question.id, question.prompt, question.ground_truth) == ("x", " {text}\nEnd:", "b")
    assert question.choices == ("a", "b")
    with pytest.raises(InputError, match="line 1"):
        read_ready_questions(write(tmp_path / "q.jsonl", {"prompt": "a"}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item = ", "not valid TOML"),
        ("head = 'a'", "item: Field required"),
        ("item = '{a}'\nshots = 3", "shots: Extra inputs"),
        ("item = '{a}'\n[[examples]]\nanswer = 'x'", "example 1.*'a' is missing"),
    ],
)
def test_a_wrong_template_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=rf"mine\.toml.*{said}"):
        read_template(tmp_path / "mine.toml")


def test_the_shipped_alternative_template_gives_the_situation() -> None:
    template = read_template(DATA / "siqa-with-context.toml")
    assert "Clara" in read_questions(DATA / "siqa.jsonl", template)[0].prompt.rpartition("\n\n")[2]


PUBLISHED = {
    "lambada": {"text": "He saw the old dog"},
    "mmlu": {"question": "q", "subject": "s", "choices": ["a", "b", "dog", "d"], "answer": 2},
    "obqa": {
        "id": "7-1",
        "question_stem": "q",
        "choices": {"text": ["a", "dog", "c", "d"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    "hellaswag": {"ctx": "c", "endings": ["dog", "b", "c", "d"], "label": "0"},
    "race": {"article": "a", "question": "q", "options": ["a", "b", "c", "dog"], "answer": "D"},
    "siqa": {
        "context": "c", "question": "q", "answerA": "a", "answerB": "dog", "answerC": "c",
        "label": "2\n",
    },
    "squad": {
        "id": "5", "context": "c", "question": "q",
        "answers": {"text": ["dog", "the dog"], "answer_start": [1, 2]},
    },
    "story_cloze": {
        "InputStoryid": "x", "InputSentence1": "a.", "InputSentence2": "b.",
        "InputSentence3": "c.", "InputSentence4": "d.", "RandomFifthSentenceQuiz1": "no",
        "RandomFifthSentenceQuiz2": "dog", "AnswerRightEnding": "2",
    },
}  # fmt: skip


@pytest.mark.parametrize("task", SCORERS)
def test_published_rows_become_items_that_the_template_takes(task: str, tmp_path: Path) -> None:
    item = convert(task, PUBLISHED[task], "row 0")
    (question,) = read_questions(write(tmp_path / "d.jsonl", item), built_in_template(task))
    assert question.ground_truth == "dog"
    broken = dict(PUBLISHED[task])
    del broken[[name for name in broken if name not in ("id", "subject", "InputStoryid")][-1]]
    with pytest.raises(InputError, match="row 0"):
        convert(task, broken, "row 0")


def test_a_published_story_keeps_its_four_sentences() -> None:
    assert convert("story_cloze", PUBLISHED["story_cloze"], "")["story"] == "a. b. c. d."
