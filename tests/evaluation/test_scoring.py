"""The scorers against the released model's outputs and the rules they must follow."""

from __future__ import annotations

import gzip
import json
import re
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_cli.errors import InputError
from cola_cli.evaluation.metrics import bootstrap_interval, paired_difference, task_metrics
from cola_cli.evaluation.outputs import read_items
from cola_cli.evaluation.scoring import Item, choice_of, first_line, normalise, score
from tests.conftest import Run

RELEASED = Path(__file__).parent / "released"
# What the authors' own scorer gives for these outputs.
CORRECT = {
    "lambada": (508, 1000),
    "mmlu": (193, 1000),
    "squad": (309, 1000),
    "story_cloze": (144, 468),
}


@pytest.mark.parametrize("task", CORRECT)
def test_the_released_outputs_score_as_the_authors_published(cola: Run, task: str) -> None:
    result = cola("eval", "score", task, RELEASED / f"{task}.jsonl.zst", "--json")
    found = json.loads(result.stdout)
    assert (found["correct"], found["n"]) == CORRECT[task]
    assert found["low"] < found["accuracy"] < found["high"]


def test_the_released_multiple_choice_answers_are_at_chance_given_a_valid_option() -> None:
    items = read_items(RELEASED / "mmlu.jsonl.zst")
    found = task_metrics("mmlu", items, [score("mmlu", item) for item in items])
    assert found.valid_options == pytest.approx(0.777)
    assert found.accuracy_given_valid == pytest.approx(0.248, abs=5e-4)
    assert found.chance == 0.25


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("one\ntwo", "one"),
        ("\n\none\ntwo", "\n\none"),
        ("...\none\n", "...\none"),
        ("no newline", "no newline"),
    ],
)
def test_an_answer_ends_at_the_first_newline_after_a_word(text: str, kept: str) -> None:
    assert first_line(text) == kept


def test_normalisation_deletes_punctuation_and_keeps_articles() -> None:
    assert normalise("  The  Don't-stop, 0.5\t!") == "the dontstop 05"
    assert not score("squad", Item("The Denver Broncos\n", "Denver Broncos")).correct


CHOICES = ("ice", "steam engine", "wooden table", "an iron rod")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(b)", "B"),
        ("c.", "C"),
        ("e", None),  # beyond the four options
        ("The answer is D", "D"),
        ("option a, or rather option c", "C"),  # the last one counts
        ("I think (B) fits", "B"),
        ("I think (B) fits, after looking at it for a very long time", None),
        ("steam  Engine!", "B"),
        ("The correct answer is wooden table", "C"),
        ("surely a steam engine then", "B"),
        ("ice on the wooden table", None),  # two options are contained
        ("an iron rot", "D"),  # a corrupted copy, similarity above 0.9
        ("nothing of the kind", None),
        ("", None),
        ("first line\nanswer: steam engine", "B"),
    ],
)
def test_answers_map_to_options(answer: str, letter: str | None) -> None:
    assert choice_of(answer, CHOICES) == letter


def test_lambada_compares_the_first_word_only() -> None:
    assert score("lambada", Item(" Signs, and more", "signs")).correct
    assert not score("lambada", Item(" the signs", "signs")).correct


def test_bootstrap_interval_has_the_width_of_the_normal_approximation() -> None:
    values = np.array([1.0] * 300 + [0.0] * 700)
    low, high = bootstrap_interval(values)
    half_width = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - half_width, abs=4e-3)
    assert high == pytest.approx(0.3 + half_width, abs=4e-3)


def test_a_paired_difference_of_equal_answers_is_exactly_zero() -> None:
    answers = [True, False, True]
    assert paired_difference(answers, answers) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not valid JSON"),
        ("[]", "line 2 is not a JSON object"),
        ('{"generate": "a"}', "line 2: the field 'ground_truth' is missing"),
        ('{"generate": "a", "ground_truth": "b", "choices": "c"}', "'choices' is not a list"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"generate": "a", "ground_truth": "a"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_items(path)


@pytest.mark.parametrize("kept", ["half a line", "whole lines"])
def test_truncated_zstd_is_bad_input(tmp_path: Path, kept: str) -> None:
    path = tmp_path / "cut.jsonl.zst"
    if kept == "half a line":
        whole = (RELEASED / "squad.jsonl.zst").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:  # all that can be read are whole lines, and the rest would be missed in silence
        packed = zstandard.ZstdCompressor().compressobj()
        line = b'{"generate": "a", "ground_truth": "a"}\n'
        flushed = packed.compress(line) + packed.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        path.write_bytes(flushed)
    with pytest.raises(InputError, match=r"cut\.jsonl\.zst"):
        read_items(path)


def test_several_frames_plain_text_and_gzip_hold_the_same_items(tmp_path: Path) -> None:
    row = {"generate": "4", "ground_truth": 4, "choices": [0, "4"]}  # numbers are read as written
    lines = [json.dumps(row).encode() + b"\n"] * 3
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, lines)))
    plain, *others = (read_items(tmp_path / f"a.jsonl{end}") for end in ("", ".gz", ".zst"))
    assert plain == [Item("4", "4", ("0", "4"))] * 3
    assert others == [plain, plain]
    assert all(score("mmlu", item).correct for item in plain)


def choice_by_rule(output: str, choices: list[str]) -> str | None:
    """The letter of an answer, as the rules are written down, one after another."""

    def letter(s: str) -> str | None:
        s = s.strip()
        steps = [re.findall(r"^[\(\[]?\s*([A-Za-z])\s*[\)\]]?\.?$", s)]
        word = r"(?i)\b(?:final\s+answer|answer|option|choice)\b\s*(?:is|=|:|：)?\s*"
        steps.append(re.findall(word + r"[\(\[]?\s*([A-Za-z])\s*[\)\]]?(?=\s|$|[.,;:!?])", s))
        if len(s) <= 40:
            steps.append(re.findall(r"[\(\[]\s*([A-Za-z])\s*[\)\]]", s))
        for hits in steps:
            if hits and hits[-1].upper() in "ABCDEFG"[: len(choices)]:
                return hits[-1].upper()
        return None

    def by_text(s: str) -> str | None:
        if not normalise(s):
            return None
        prefix = r"(?i)^(the\s+)?(correct\s+)?(final\s+)?(answer|option|choice)\b\s*(is|=|:|：)?\s*"
        bare = normalise(re.sub(prefix, "", s, count=1))
        normal = [normalise(choice) for choice in choices]
        for text in (normalise(s), bare):
            if text in normal:
                return "ABCDEFG"[normal.index(text)]
        if not bare:
            return None
        inside = [n for n, choice in enumerate(normal) if choice and choice in bare]
        if len(inside) == 1:
            return "ABCDEFG"[inside[0]]
        ratios = [SequenceMatcher(None, bare, choice).ratio() for choice in normal]
        best = max(ratios)
        return "ABCDEFG"[ratios.index(best)] if best >= 0.9 else None

    segment = output.strip()
    for line in reversed([line.strip() for line in output.splitlines() if line.strip()]):
        hit = re.search(r"(?i)\b(?:final\s+answer|answer)\b\s*(?:is|=|:|：)?\s*(.+)$", line)
        if hit:
            segment = hit.group(1)
            break
    for candidate in (segment, output.strip()):
        if found := letter(candidate) or by_text(candidate):
            return found
    return None


PIECES = st.sampled_from(
    ["The correct answer is", "answer:", "Final answer =", "option", "choice", "(B)", "[c]", "D.", "a", "e)",
     "(f)", "steam engine", "steam  Engine!", "ice", "wooden table", "an iron rot", "wooden tables", "iron",
     "\n", "\n\n", "...", "is", "：", "because of", "A", ", ", "-", "a very long way to no answer at all"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=5), st.sampled_from([" ", ""]))
@settings(max_examples=500, deadline=None)
def test_any_answer_maps_to_the_option_that_the_rules_give(pieces: list[str], gap: str) -> None:
    text = gap.join(pieces)
    kept = first_line(text)
    assert choice_of(kept, CHOICES) == choice_by_rule(kept, list(CHOICES))
    for number, truth in enumerate(CHOICES):
        expected = choice_by_rule(kept, list(CHOICES)) == "ABCD"[number]
        for task in ("mmlu", "obqa", "race", "siqa"):
            right = expected or normalise(kept) == normalise(truth)
            assert score(task, Item(text, truth, CHOICES)).correct == right
        for task in ("hellaswag", "story_cloze", "squad"):
            right = normalise(kept) == normalise(truth)
            assert score(task, Item(text, truth, CHOICES)).correct == right
