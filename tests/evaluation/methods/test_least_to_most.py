"""Least-to-most: what is written is what a plain loop over the engine writes, part after part."""

from __future__ import annotations

import re
from dataclasses import replace

from lmsmith.evaluation.methods.writing import LeastToMost, parts_of_question
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.run import make_method
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import with_shots
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.spec import (
    AnswerSpec,
    DataSpec,
    DecomposeSpec,
    PromptSpec,
    TaskSpec,
)
from lmsmith.evaluation.tasks.templates import find_all
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer

TASK = TaskSpec(
    "made",
    "free_form",
    DataSpec(file="a.jsonl"),
    prompt=PromptSpec(
        instruction="Answer:", context="{{ q }}", target="{{ a }}", demonstrations=("the dog",)
    ),
    answer=AnswerSpec(max_new_tokens=5, stop=(), normalise="text"),
    decompose=DecomposeSpec(
        context="parts of {{ q }}:",
        demonstrations=("parts of the cat: sat", "not shown"),
        max_new_tokens=8,
        stop=(),
        part=r"(\S)",
        most=2,
        question="{{ part }}?",
        last="{{ q }}",
    ),
)
ITEMS = [
    Item(str(n), {"q": q, "a": "blue"}, "row")
    for n, q in enumerate(["what is the sky", "the sea", "the dog and the cat"])
]


def written(subject: EvaluatedModel, text: str, room: int) -> str:
    engine = Engine(subject.model, tokenizer=subject.tokenizer)
    tokens = [subject.tokenizer.start_of_text, *subject.tokenizer.encode(text)]
    settings = SamplingSettings(room, 0.0, stop_tokens=subject.tokenizer.stop_tokens)
    return answer(engine, [Request(tokens, settings, "", 0)])[0][0].text


def test_every_part_is_asked_after_those_before_it(tiny: EvaluatedModel) -> None:
    questions = [with_shots(TASK, item, [ITEMS[1]]) for item in ITEMS]
    method = make_method(tiny, TASK, questions)
    assert isinstance(method, LeastToMost)
    rows = list(method.answer([0, 1, 2]))
    several = 0
    for item, row in zip(ITEMS, rows, strict=True):
        question = item.fields["q"]
        listed = written(tiny, f"parts of the cat: sat\n\nparts of {question}:", 8)
        parts = list(dict.fromkeys(re.findall(r"\S", listed)))[:2]
        several += len(parts) > 1
        said, steps = f"Answer:\n\nthe dog\n\n{question}", []
        for part in [*parts, question]:
            said += f"\n\n{part}?"
            text = written(tiny, said, 5)
            steps.append(f"{part}? {text.strip()}")
            said += f" {text.strip()}"
        assert row.reasoning == [listed, *steps[:-1]]
        assert row.texts == [text]
        assert row.answer == text.strip()
    assert several, "no item had two parts: choose other texts"
    assert list(method.answer([1])) == rows[1:2]


def test_parts_are_named_once_and_the_question_comes_last() -> None:
    text = 'To answer "c?", first "a?", then "b?", then "a?", then "c?", then " ", then "d?".'
    found, nothing = find_all('"([^"]+)"', [text, "nothing"])
    assert parts_of_question(found, "c?", 9) == ["a?", "b?", "d?", "c?"]
    assert parts_of_question(found, "c?", 1) == ["a?", "c?"]
    assert parts_of_question(nothing, "c?", 9) == ["c?"]


def test_the_shipped_tasks_examples_are_read_by_their_own_rules() -> None:
    for name, expected in (
        ("gsm8k_least_to_most", "How many loaves does she have after baking?"),
        ("last_letters_least_to_most", "river"),
    ):
        (task,) = find_tasks([name])
        spec = task.decompose
        listed = spec.demonstrations[0].split("\nA:")[1]
        assert parts_of_question(*find_all(spec.part, [listed]), "", spec.most)[0] == expected
        fields = {
            "context": "Tom has 3 dogs. How many legs?",
            "question": 'Take the last letters of each words in "Ann Bo" and concatenate them.',
            "answer": "12",
            "chain_of_thought": "",
        }
        question = with_shots(task, Item("0", fields, "row"), [])
        assert question.last in ("How many legs?", "Ann, Bo")
        assert question.last in question.contexts[0]


def test_what_does_not_go_with_parts_is_refused() -> None:
    sampled = replace(TASK, answer=AnswerSpec(search="sample", samples=3))
    assert any("broken up" in problem.expected for problem in sampled.check())
    assert any(
        "what is asked last" in row.expected for row in replace(TASK.decompose, last="").check()
    )
    assert any("one group" in row.expected for row in replace(TASK.decompose, part="x").check())
