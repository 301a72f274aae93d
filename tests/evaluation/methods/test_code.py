"""Programs are put together, run with their tests, and counted by pass@k."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.evaluation.methods import code
from lmsmith.evaluation.methods.code import Code, check_system, make_program, pass_at_k
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import with_shots
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.spec import measured_at

try:
    check_system()
except UserError as error:
    pytest.skip(f"no sandbox here: {error.problem}", allow_module_level=True)

ADD = {
    "prompt": 'def add(a, b):\n    """Their sum."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    "entry_point": "add",
}


def test_completions_pass_or_fail_their_tests(
    tiny: EvaluatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = find_tasks(["human_eval"])[0]
    question = with_shots(task, Item("3", ADD, "row"), [])
    method = Code(tiny, [question], task.answer)
    texts = ["\n    return a + b\n", "\n    return a - b\n", "\n    return (", "\n    exit(0)\n"]
    asked: dict[str, Any] = {}

    def write(prompts: Any, ids: Any, *_: Any) -> tuple[list[list[str]], list[int]]:
        asked.update(ids=ids)
        return [texts], [0]

    monkeypatch.setattr(method._writer, "write", write)
    row = next(method.answer([0]))
    assert asked == {"ids": [3]}
    assert [verdict.split()[0] for verdict in row.verdicts] == ["passed"] + ["failed"] * 3
    assert row.metrics == {"pass_at_1": 0.25}


def test_the_papers_solution_of_every_problem_passes(public_data: Any) -> None:
    from lmsmith.evaluation.tasks.data import read_data

    task = find_tasks(["human_eval"])[0]
    data = read_data(task, [public_data("tasks").parent])
    # Some by chance, and those whose tests call helpers of the prompt or the program by name.
    for item in [*data.items[::20], *(data.items[number] for number in (32, 33, 38, 50))]:
        question = with_shots(task, item, [])
        assert code.run_program(make_program(question, question.choices[0])).passed
        assert not code.run_program(make_program(question, "\n    pass\n")).passed
        assert not question.contexts[0][-1].isspace()


@pytest.mark.parametrize(
    "trick",
    [
        "\n    class Equal(int):\n        __eq__ = lambda *_: True\n    return Equal()\n",
        "\n    import os\n    os._exit(0)\n",
        "\n    import ctypes\n    ctypes.string_at(0)\n",
        "\n    return a - b\ndef check(candidate): pass\n",
        "\n    while True: print('x' * 9999)\n",
    ],
)
def test_a_trick_is_a_wrong_answer_and_no_end(
    tiny: EvaluatedModel, monkeypatch: pytest.MonkeyPatch, trick: str
) -> None:
    task = find_tasks(["human_eval"])[0]
    method = Code(tiny, [with_shots(task, Item("3", ADD, "row"), [])], task.answer)
    monkeypatch.setattr(method._writer, "write", lambda *_: ([[trick]], [0]))
    assert next(method.answer([0])).metrics == {"pass_at_1": 0.0}


@given(st.integers(1, 8), st.data())
def test_it_is_the_share_of_picks_that_hold_one_that_passed(
    samples: int, data: st.DataObject
) -> None:
    passed = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    outcomes = [True] * passed + [False] * (samples - passed)
    picks = list(combinations(outcomes, k))
    expected = sum(any(pick) for pick in picks) / len(picks)
    assert pass_at_k(samples, passed, k) == pytest.approx(expected)


def test_it_is_the_papers_formula_for_many_samples() -> None:
    for passed in (0, 1, 13, 100, 200):
        expected = 1 - comb(200 - passed, 100) / comb(200, 100)
        assert pass_at_k(200, passed, 100) == pytest.approx(expected, abs=1e-12)


def test_impossible_counts_are_refused() -> None:
    for samples, passed, k in ((3, 4, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(samples, passed, k)
    assert measured_at(1) == [1]
    assert measured_at(10) == [1, 10]
    assert measured_at(200) == [1, 10, 100]
