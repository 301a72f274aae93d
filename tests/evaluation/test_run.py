"""Tasks put to a model: what is answered is kept, and nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.evaluation import run
from lmsmith.evaluation.methods.likelihood import MultipleChoice
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.run import TaskResult, evaluate_task
from lmsmith.evaluation.tasks.spec import AnswerSpec, DataSpec, PromptSpec, TaskSetting, TaskSpec

TASK = TaskSpec(
    "made",
    "multiple_choice",
    DataSpec(file="made.jsonl"),
    prompt=PromptSpec(context="{{ q }}", choices="choices", gold="gold"),
)
WORDS = ["the", "dog", "ran", "to", "river", "and", "cat", "sat", "on", "mat"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {
            "q": " ".join(WORDS[: n % 7 + 2]) + f" {n}",
            "choices": ["blue", "sea", "a house"],
            "gold": 1,
        }
        for n in range(12)
    ]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the items that are put to the model."""
    found: list[str] = []
    answer = MultipleChoice.answer

    def watched(self: MultipleChoice, numbers: Any) -> Any:
        for row in answer(self, numbers):
            found.append(row.id)
            yield row

    monkeypatch.setattr(MultipleChoice, "answer", watched)
    monkeypatch.setattr(run, "TOKENS_A_BATCH", 40)
    return found


def put(
    subject: EvaluatedModel, data: Path, setting: TaskSetting, task: TaskSpec = TASK
) -> TaskResult:
    return evaluate_task(subject, task, setting, [data], data / "out", QuietProgress())


def test_a_higher_limit_asks_only_what_is_new(
    tiny: EvaluatedModel, data: Path, asked: list[str]
) -> None:
    few = put(tiny, data, TaskSetting(shots=2, limit=5))
    drawn = sorted(asked, key=int)
    assert len(drawn) == 5
    assert drawn != [str(n) for n in range(5)]
    assert [row.id for row in few.rows] == drawn
    assert few.part == "5 of 12 items, drawn by seed 0"
    assert few.as_dict()["items_available"] == 12
    whole = put(tiny, data, TaskSetting(shots=2))
    assert len(asked) == whole.items == 12
    assert [row.id for row in whole.rows] == [str(n) for n in range(12)]
    assert [row for row in whole.rows if row.id in drawn] == list(few.rows)
    assert whole.part == ""
    assert all(len(row.shots) == 2 for row in whole.rows)
    assert whole.seconds > few.seconds


def test_an_interrupted_run_goes_on_and_ends_the_same(
    tiny: EvaluatedModel, data: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = put(tiny, data, TaskSetting(shots=1), replace(TASK, name="unbroken"))
    asked.clear()
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted(15)

    monkeypatch.setattr(run, "stop_if_requested", stop)
    with pytest.raises(Interrupted):
        put(tiny, data, TaskSetting(shots=1))
    kept = list(asked)
    assert 0 < len(kept) < 12
    log = data / "out/made-1-shot.jsonl"
    with log.open("ab") as file:  # a kill in the middle of a line
        file.write(b'{"id": "11", "pro')
    found = put(tiny, data, TaskSetting(shots=1))
    assert sorted(asked, key=int) == [str(n) for n in range(12)]
    assert list(found.rows) == list(unbroken.rows)
    assert found.measures == unbroken.measures


@pytest.mark.parametrize("change", ["seed", "model", "prompt", "data"])
def test_what_rows_depend_on_makes_them_anew(
    tiny: EvaluatedModel,
    make_tiny: Callable[..., EvaluatedModel],
    data: Path,
    asked: list[str],
    change: str,
) -> None:
    put(tiny, data, TaskSetting(shots=1, limit=4))
    put(tiny, data, TaskSetting(shots=1, limit=4))
    assert len(asked) == 4
    subject, task, setting = tiny, TASK, TaskSetting(shots=1, limit=4)
    if change == "seed":
        setting = replace(setting, seed=1)
    elif change == "model":
        subject = make_tiny(seed=1)
    elif change == "prompt":
        task = replace(task, prompt=replace(task.prompt, separator="\n"))
    else:
        text = (data / "made.jsonl").read_text()
        (data / "made.jsonl").write_text(text.replace("a house", "two houses"))
    put(subject, data, setting, task)
    assert len(asked) == 8
    put(subject, data, setting, replace(task, about="in other words"))
    assert len(asked) == 8


def test_as_many_shots_as_fit_and_no_more(
    make_tiny: Callable[..., EvaluatedModel], data: Path
) -> None:
    subject = make_tiny(context=64)
    found = put(subject, data, TaskSetting(shots=None))
    assert found.truncated == 0
    assert 0 < found.mean_shots < 11
    more = put(subject, data, TaskSetting(shots=int(found.mean_shots) + 4))
    assert more.truncated > 0
    assert found.setting.label == "fit"


def test_a_limit_draws_the_same_items_of_a_sorted_file_for_all(
    tiny: EvaluatedModel, make_tiny: Callable[..., EvaluatedModel], data: Path
) -> None:
    rows = [{"q": f"word {n}", "choices": ["sea", "dog"], "gold": int(n > 19)} for n in range(40)]
    (data / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = put(tiny, data, TaskSetting(limit=10))
    ids = [row.id for row in found.rows]
    assert {row.gold for row in found.rows} == {0, 1}
    for shots, subject in ((2, tiny), (0, make_tiny(seed=1))):
        again = put(subject, data, TaskSetting(shots=shots, limit=10))
        assert [row.id for row in again.rows] == ids
    other = put(tiny, data, TaskSetting(limit=10, seed=1))
    assert [row.id for row in other.rows] != ids


def test_twins_of_the_right_choice_are_right(tiny: EvaluatedModel, data: Path) -> None:
    row = {"q": "the sky is", "choices": ["blue", "blue", "a house by the sea"]}
    lines = [json.dumps(row | {"gold": gold}) + "\n" for gold in (0, 1)]
    (data / "made.jsonl").write_text("".join(lines))
    first, second = put(tiny, data, TaskSetting()).rows
    assert first.metrics == second.metrics
    assert 1.0 in first.metrics.values()


def test_shots_that_would_ask_the_same_are_refused(tiny: EvaluatedModel, data: Path) -> None:
    rows = [{"id": n, "q": "sea?", "choices": ["a", "b"], "gold": 0} for n in range(4)]
    rows += [{"q": "dog?", "choices": ["a", "b"], "gold": 0}]
    (data / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="2 shots, but only 1 of the 5 examples ask something else"):
        put(tiny, data, TaskSetting(shots=2))


def test_more_shots_than_examples_are_refused(tiny: EvaluatedModel, data: Path) -> None:
    with pytest.raises(UserError, match="12 shots, but there are 12 examples"):
        put(tiny, data, TaskSetting(shots=12))


def test_examples_of_another_file(tiny: EvaluatedModel, data: Path) -> None:
    row = {"q": "colour of the sky?", "choices": ["blue", "sea"], "gold": 0}
    (data / "train.jsonl").write_text((json.dumps(row) + "\n") * 3)
    task = replace(TASK, data=replace(TASK.data, examples="train.jsonl"))
    found = put(tiny, data, TaskSetting(shots=2, limit=3), task)
    assert {tuple(sorted(row.shots)) for row in found.rows} <= {
        ("0", "1"),
        ("0", "2"),
        ("1", "2"),
    }
    every = put(tiny, data, TaskSetting(shots=3, limit=3), task)  # the item is none of them
    assert {tuple(sorted(row.shots)) for row in every.rows} == {("0", "1", "2")}
    with pytest.raises(UserError, match="4 shots, but there are 3 examples"):
        put(tiny, data, TaskSetting(shots=4, limit=3), task)


def test_a_long_document_tells_how_far_it_is_and_can_be_stopped(
    seed: int, make_tiny: Callable[..., EvaluatedModel], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = np.random.default_rng(seed).choice(["house", "sea", "little", "sisters", "cat"], 2_000)
    (data / "long.txt").write_text(" ".join(words))
    task = TaskSpec("long", "perplexity", DataSpec(file="long.txt", documents="whole"))

    class Watched(QuietProgress):
        def begin(self, description: str, total: int, unit: str, done: int = 0) -> None:
            self.total, self.unit, self.read = total, unit, list[int]()

        def update(self, done: int, **figures: float) -> None:
            self.read.append(done)

    progress = Watched()
    subject = make_tiny(context=64)
    found = evaluate_task(subject, task, TaskSetting(), [data], data / "out", progress)
    assert progress.unit == "tokens"
    assert len(progress.read) > 3
    assert progress.read == sorted(progress.read)
    assert 0.9 < progress.read[-1] / progress.total <= 1  # windows that begin alike are read once
    assert found.items == 1

    def stop() -> None:
        raise Interrupted(2)

    monkeypatch.setattr(run, "stop_if_requested", stop)
    stopped = Watched()
    with pytest.raises(Interrupted):
        evaluate_task(subject, task, TaskSetting(), [data], data / "again", stopped)
    assert len(stopped.read) == 1


def test_right_answers_that_no_model_can_write_are_counted(
    tiny: EvaluatedModel, tmp_path: Path
) -> None:
    golds = ["cat", "the dog ran to the river and sat on the mat", "cat\ndog", " mat\n"]
    rows = [{"q": f"{n}?", "a": gold} for n, gold in enumerate(golds)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskSpec(
        "own",
        "free_form",
        DataSpec(file="own.jsonl"),
        prompt=PromptSpec(context="{{ q }}", answers="a"),
        answer=AnswerSpec(max_new_tokens=9),
    )
    progress = QuietProgress()
    evaluate_task(tiny, task, TaskSetting(shots=0), [tmp_path], tmp_path / "out", progress)
    where = "in the task's file (lmsmith tasks show TASK --toml begins one)"
    of = "own: the right answers of 1 of 4 items"
    assert progress.said == [
        f"{of} are longer than 9 tokens: raise answer.max_new_tokens {where}",
        f"{of} contain a text at which an answer ends: change answer.stop {where}",
    ]
