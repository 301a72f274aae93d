"""A description and a few examples as a function of texts."""

from __future__ import annotations

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.functions import TextFunction, classification, extraction
from lmsmith.evaluation.methods.likelihood import LikelihoodReader
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.data import Item

ABOUT = "Is it of the {{ sea }} or the house?"
EXAMPLES = [
    Item("0", {"input": "three sisters", "label": "house"}, "row 1"),
    Item("1", {"input": "a little river", "label": "sea"}, "row 2"),
]


def test_labels_and_their_probabilities_are_the_models(tiny: EvaluatedModel) -> None:
    task = classification("where", ABOUT, ["house", "sea"], "where.jsonl")
    assert not task.check()
    function = TextFunction(tiny, task, EXAMPLES)
    texts = ["the dog sat on the mat", "the cat {{ 7 * 7 }} <|endoftext|>"]
    found = function(texts)
    assert function(texts[1:]) == found[1:]
    assert function([]) == []
    for text, row in zip(texts, found, strict=True):
        shown = _prompts(tiny, text)
        assert row["input"] == text
        assert sum(row["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert row["probability"] == max(row["probabilities"].values())
        assert row["probabilities"][row["label"]] == row["probability"]
        ratio = row["probabilities"]["house"] / row["probabilities"]["sea"]
        assert any(ratio == pytest.approx(each, rel=1e-2) for each in shown)


def _prompts(subject: EvaluatedModel, text: str) -> list[float]:
    """P(house) / P(sea) after the examples in either order."""
    found = []
    shots = [f"Input: {e.fields['input']}\nLabel: {e.fields['label']}\n\n" for e in EXAMPLES]
    for order in (shots, shots[::-1]):
        context = f"{ABOUT}\n\n{''.join(order)}Input: {text}\nLabel:"
        pairs = subject.encode_pairs([(context, " house"), (context, " sea")])
        house, sea = LikelihoodReader(subject.model).read(pairs)
        found.append(2.718281828459045 ** (house.total - sea.total))
    return found


def test_without_labels_a_line_is_written(tiny: EvaluatedModel) -> None:
    task = extraction("city", "Name the city.", "city.jsonl", max_new_tokens=5)
    examples = [Item("0", {"input": "a", "output": "b"}, "row 1")]
    rows = TextFunction(tiny, task, examples)(["the river", "the sea"])
    assert [row["input"] for row in rows] == ["the river", "the sea"]
    assert all("\n" not in row["output"] for row in rows)


def test_names_and_labels_are_checked() -> None:
    with pytest.raises(UserError, match="no name for a task"):
        classification("../x", ABOUT, ["a", "b"], "x")
    with pytest.raises(UserError, match="name two or more"):
        classification("x", ABOUT, ["a"], "x")
