"""From the rows of the public data sets, as their publishers give them, to this project's task data.

Each function takes one row (a mapping with the data set's own field names) and returns one item of
docs/evaluation.md. A row that lacks its answer is an error, never left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cola_cli.errors import InputError

Row = Mapping[str, Any]


def lambada(row: Row) -> dict[str, Any]:
    """`text` whose last word is the answer, or `query` and `answers_text`."""
    if "query" in row:
        return {"text": row["query"], "answer": row["answers_text"][0]}
    text, _, answer = str(row["text"]).strip().rpartition(" ")
    return {"text": text.rstrip(), "answer": answer}


def mmlu(row: Row) -> dict[str, Any]:
    """`question`, four `choices`, `answer` counted from 0, `subject`."""
    subject = {"subject": row["subject"]} if "subject" in row else {}
    return subject | {"question": row["question"]} | _chosen(row["choices"], int(row["answer"]))


def obqa(row: Row) -> dict[str, Any]:
    """`question_stem`, `choices` {text, label}, `answerKey` a label; or `query`, `choices`, `gold` from 0."""
    if "query" in row:
        question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        return {"question": question} | _chosen(row["choices"], int(row["gold"]))
    choices = row["choices"]
    index = list(choices["label"]).index(row["answerKey"])
    return {"question": row["question_stem"]} | _chosen(choices["text"], index)


def hellaswag(row: Row) -> dict[str, Any]:
    """`ctx`, four `endings`, `label` counted from 0 (a text)."""
    return {"context": row["ctx"]} | _chosen(row["endings"], int(row["label"]))


def race(row: Row) -> dict[str, Any]:
    """`article`, `question`, four `options`, `answer` a letter."""
    item = {"article": row["article"], "question": row["question"]}
    return item | _chosen(row["options"], ord(row["answer"]) - ord("A"))


def siqa(row: Row) -> dict[str, Any]:
    """`context`, `question`, `answerA` to `answerC`, `label` counted from 1 (a text)."""
    item = {"context": row["context"], "question": row["question"]}
    return item | _chosen([row[f"answer{c}"] for c in "ABC"], int(row["label"]) - 1)


def squad(row: Row) -> dict[str, Any]:
    """`id`, `context`, `question`, `answers` {text}; or `query` with Background and Question lines.

    The first of several answers is the right one, as in the released scoring.
    """
    if "query" in row:
        before, _, question = row["query"].removesuffix("\nAnswer:").rpartition("\nQuestion: ")
        context = before.partition("\nBackground: ")[2]
        answer = row["answers_text"][0]
    else:
        context, question, answer = row["context"], row["question"], row["answers"]["text"][0]
    return {"id": row["id"], "context": context, "question": question, "answer": answer}


def story_cloze(row: Row) -> dict[str, Any]:
    """`InputSentence1` to 4, `RandomFifthSentenceQuiz1` and 2, `AnswerRightEnding` counted from 1."""
    lower = {str(name).lower().replace("_", ""): value for name, value in row.items()}
    story = " ".join(str(lower[f"inputsentence{n}"]) for n in range(1, 5))
    endings = [
        lower.get(f"randomfifthsentencequiz{n}") or lower[f"sentencequiz{n}"] for n in (1, 2)
    ]
    return {"story": story} | _chosen(endings, int(lower["answerrightending"]) - 1)


CONVERTERS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "lambada": lambada,
    "mmlu": mmlu,
    "obqa": obqa,
    "hellaswag": hellaswag,
    "race": race,
    "siqa": siqa,
    "squad": squad,
    "story_cloze": story_cloze,
}


def convert(task: str, row: Row, place: str) -> dict[str, Any]:
    """One item of `task`. Raises InputError naming `place` when the row is not of the data set's form."""
    try:
        return CONVERTERS[task](row)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{place}: is not a row of {task} as it is published ({type(error).__name__}: {error}).",
            "Use the data set's own fields, or write the items as docs/evaluation.md says.",
        ) from error


def _chosen(choices: Sequence[str], index: int) -> dict[str, Any]:
    if not 0 <= index < len(choices):
        raise IndexError(f"answer {index} of {len(choices)} choices")
    return {"choices": list(choices), "answer": choices[index]}
