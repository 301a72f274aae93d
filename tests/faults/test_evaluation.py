"""Answers, shots and spaces of users' files, as public bug reports have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.methods.answers import NORMALISERS, exact_match
from lmsmith.evaluation.tasks.data import read_data, search_path
from lmsmith.evaluation.tasks.inferred import infer_task
from lmsmith.evaluation.tasks.prompts import draw_shots, with_shots, write_question
from lmsmith.evaluation.tasks.shipped import find_tasks

Faults = Callable[[str], Path]


def test_numbers(faults: Faults) -> None:
    for line in (faults("30-numbers") / "pairs.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        found = exact_match(row["said"], [row["gold"]], NORMALISERS["number"])
        assert bool(found) == row["right"], row


@pytest.mark.parametrize("name", ["exact", "ids"])
def test_no_shot_tells_the_answer(faults: Faults, name: str) -> None:
    task = infer_task(faults("31-shots-leak") / f"{name}.jsonl")
    data = read_data(task, search_path())
    for item in data.items[:3]:
        for seed in range(5):
            shots = draw_shots(data.pool, item, 2, seed)
            assert "QX7" not in with_shots(task, item, shots).contexts[0]


def test_articles_are_answers(faults: Faults) -> None:
    task = infer_task(faults("32-answer-is-an-article") / "letters.jsonl")
    for item in read_data(task, search_path()).items:
        (answer,) = write_question(task, item).answers
        assert exact_match(answer, [answer], NORMALISERS[task.answer.normalise]) == 1.0


@pytest.mark.parametrize("name", ["choices", "choices_plain", "cloze", "query_space"])
def test_a_space_stands_once(faults: Faults, name: str) -> None:
    task = infer_task(faults("33-leading-space") / f"{name}.jsonl")
    for item in read_data(task, search_path()).items:
        question = write_question(task, item)
        for choice in question.choices:
            text = question.contexts[0] + task.prompt.delimiter + choice
            assert "  " not in text
            assert text.count(" ") == len(text.split()) - 1


READ = {
    "float": ("4", "4.0"),
    "list": ("Paris", "paris"),
    "number": ("4",),
    "true": ("true",),
    "zero": ("0",),
    "gold_float": ("b",),
    "gold_letter": ("a",),
    "gold_string": ("b",),
    "twin_choices": ("a",),
}
REFUSED = {
    "dict": r"prompt\.answers, .*, line 1: 'answer' is an object",
    "empty": r"prompt\.answers, .*, line 1: the answer is empty",
    "gold_one_based": r"prompt\.gold, .*, line 1: gold is 2\n.*gold - 1",
    "mixed_keys": r"prompt\.context, .*, line 2: 'question' is undefined",
    "nan": r"prompt\.answers, .*, line 1: 'answer' is NaN",
    "null": r"prompt\.answers, .*, line 1: 'answer' is null",
    "null_fields": r"prompt\.context, .*, line 1: 'query' is null",
    "one_choice": r"prompt\.choices, .*, line 1: 1 choice\n",
    "space": r"prompt\.answers, .*, line 1: the answer is empty",
}


@pytest.mark.parametrize("name", [*READ, *REFUSED])
def test_odd_answers(faults: Faults, name: str) -> None:
    task = infer_task(faults("35-odd-answers") / f"{name}.jsonl")
    items = read_data(task, search_path()).items
    if name in READ:
        assert write_question(task, items[0]).answers == READ[name]
    else:
        with pytest.raises(UserError, match=REFUSED[name]):
            [write_question(task, item) for item in items]


def test_a_task_saved_with_a_byte_order_mark(faults: Faults) -> None:
    (task,) = find_tasks([str(faults("38-odd-files") / "task-bom.toml")])
    assert task.name == "samp"
