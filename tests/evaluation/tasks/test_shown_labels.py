"""Shots' labels put in others' place, and shots put in other orders."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.generated import common_words
from lmsmith.evaluation.tasks.prompts import draw_shots, nth_order, with_shots
from lmsmith.evaluation.tasks.shown_labels import ShownLabels, has_shared_labels
from lmsmith.evaluation.tasks.spec import DataSpec, PromptSpec, TaskSpec

TASK = TaskSpec(
    "tone",
    "multiple_choice",
    DataSpec(file="tone.jsonl"),
    prompt=PromptSpec(
        context="{{ x }} =", choices="['good', 'bad', 'fair']", gold="y", separator="\n"
    ),
)
POOL = [Item(str(n), {"x": f"x{n}", "y": n % 3}, f"row {n}") for n in range(300)]
RIGHT = ["good", "bad", "fair"]


def lines_of(kind: str, item: Item, count: int = 8, seed: int = 3) -> list[str]:
    labels = ShownLabels(TASK, POOL, kind, seed)  # type: ignore[arg-type]
    shots = draw_shots(POOL, item, count, seed)
    question = labels.asked(with_shots(TASK, item, shots, labels.answers(item, shots)))
    return question.contexts[0].split("\n")


def test_gold_labels_are_what_is_shown_without_a_study() -> None:
    shots = draw_shots(POOL, POOL[7], 8, 3)
    assert lines_of("gold", POOL[7]) == with_shots(TASK, POOL[7], shots).contexts[0].split("\n")


def test_random_labels_are_uniform_over_the_choices_and_keep_the_inputs() -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for item in POOL:
        gold, random = lines_of("gold", item), lines_of("random", item)
        assert [line.split(" = ")[0] for line in gold] == [line.split(" = ")[0] for line in random]
        for right, shown in zip(gold[:-1], random[:-1], strict=True):
            counts[right.split(" = ")[1], shown.split(" = ")[1]] += 1
    assert len(counts) == 9
    for right in RIGHT:
        total = sum(counts[right, shown] for shown in RIGHT)
        for shown in RIGHT:  # 800 draws: five standard deviations are 0.083
            assert counts[right, shown] / total == pytest.approx(1 / 3, abs=0.083)


def test_words_are_as_many_as_the_labels_and_none_of_them() -> None:
    shown = {line.split(" = ")[1] for item in POOL[:40] for line in lines_of("words", item)[:-1]}
    assert len(shown) == 3
    assert shown <= set(common_words()) - set(RIGHT)
    assert lines_of("words", POOL[0])[-1] == "x0 ="


def test_inputs_alone() -> None:
    assert all(line.endswith(" =") for line in lines_of("none", POOL[4]))
    assert len(lines_of("none", POOL[4])) == 9


def test_renamed_labels_keep_the_mapping_in_shots_and_item() -> None:
    labels = ShownLabels(TASK, POOL, "renamed", 3)
    names: dict[str, str] = {}
    for item in POOL[:60]:
        shots = draw_shots(POOL, item, 8, 3)
        question = labels.asked(with_shots(TASK, item, shots, labels.answers(item, shots)))
        plain = with_shots(TASK, item, shots)
        for new, old in zip(question.choices, plain.choices, strict=True):
            assert names.setdefault(old, new) == new
        renamed = [line.split(" = ")[1] for line in question.contexts[0].split("\n")[:-1]]
        gold = [line.split(" = ")[1] for line in plain.contexts[0].split("\n")[:-1]]
        assert renamed == [names[label] for label in gold]
        assert question.gold == plain.gold
    assert len(set(names.values())) == 3
    assert not set(names.values()) & set(RIGHT)


def test_of_a_task_without_choices_random_answers_are_other_examples() -> None:
    task = TaskSpec(
        "sum",
        "free_form",
        DataSpec(file="a.jsonl"),
        prompt=PromptSpec(context="{{ x }} =", target="{{ x }}!", separator="\n"),
    )
    labels = ShownLabels(task, POOL, "random", 0)
    shots = draw_shots(POOL, POOL[0], 30, 0)
    answers = labels.answers(POOL[0], shots)
    assert {a[:-1] for a in answers if a} <= {str(each.fields["x"]) for each in POOL}
    own = [a == f"{s.fields['x']}!" for a, s in zip(answers, shots, strict=True)]
    assert sum(own) <= 2
    assert not has_shared_labels(task, POOL)
    with pytest.raises(UserError, match="no labels that all items share"):
        ShownLabels(task, POOL, "renamed", 0)


def test_fixed_shots_have_the_same_labels_for_all() -> None:
    fixed = ShownLabels(TASK, POOL, "random", 0, fixed=True)
    own = ShownLabels(TASK, POOL, "random", 0)
    shots = POOL[100:140]
    assert fixed.answers(POOL[0], shots) == fixed.answers(POOL[1], shots)
    assert own.answers(POOL[0], shots) != own.answers(POOL[1], shots)


def test_written_demonstrations_have_no_labels_to_replace() -> None:
    task = replace(TASK, prompt=replace(TASK.prompt, demonstrations=("a = good",)))
    with pytest.raises(UserError, match="no labels to be replaced"):
        ShownLabels(task, POOL, "random", 0)


@given(st.integers(1, 5), st.integers(0, 2**31))
def test_orders_differ_and_depend_on_their_number_alone(count: int, seed: int) -> None:
    every = min(math.factorial(count), 24)
    orders = [nth_order(count, number, seed) for number in range(every)]
    assert orders[0] == tuple(range(count))
    assert len(set(orders)) == every
    assert set(orders) <= set(itertools.permutations(range(count)))
    with pytest.raises(ValueError, match="which have"):
        nth_order(count, math.factorial(count), seed)
