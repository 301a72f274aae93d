"""The study's kept answers: they count while model, data and settings are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmsmith import bert_study
from tiny_encoders import tiny_folder

TASK = """
texts = ["text"]
labels = ["no", "yes"]

[data]
train = "train.jsonl"
test = ["test.jsonl"]
"""


def test_answers_are_measured_again_where_the_data_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = tiny_folder(tmp_path / "model"), tmp_path / "task.toml"
    task.write_text(TASK)
    tuned: list[Path] = []

    def finetune(base: str, task: str, *, data: Path, out: Path, **_: object) -> None:
        tuned.append(data)
        (out / "finetune").mkdir(parents=True)
        row = {"texts": ["a"], "right": "yes", "label": "yes"}
        (out / "finetune" / "predictions.jsonl").write_text(json.dumps(row) + "\n")

    monkeypatch.setattr(bert_study, "finetune", finetune)

    def answer() -> int:
        arguments = (
            model,
            "bert",
            str(task),
            tmp_path / "data",
            ["seed=0"],
            tmp_path / "out",
            True,
        )
        bert_study._answers(*arguments)
        return len(tuned)

    (tmp_path / "data").mkdir()
    row = json.dumps({"text": "a", "label": "yes"}) + "\n"
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "data" / name).write_text(row)
    assert [answer(), answer()] == [1, 1]
    (tmp_path / "data" / "test.jsonl").write_text(row * 2)
    assert [answer(), answer()] == [2, 2]
    task.write_text(TASK.replace('"no", "yes"', '"yes", "no"'))
    assert [answer(), answer()] == [3, 3]
