"""Ratings of what a model writes: their measures, and that graders read what they should."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.functions import TextFunction
from lmsmith.evaluation.methods import rated, writing
from lmsmith.evaluation.methods.likelihood import LikelihoodReader
from lmsmith.evaluation.methods.rated import LabelWords, classifier_score, rater_identity
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.run import make_method
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import with_shots
from lmsmith.evaluation.tasks.spec import AnswerSpec, DataSpec, PromptSpec, RatingSpec, TaskSpec

ITEMS = [Item(str(n), {"q": q}, "row") for n, q in enumerate(["the sea", "the dog"])]
GRADER = RatingSpec(
    by="model",
    prompt="{{ prompt }} | {{ target }} | {{ answer }} | Grade:",
    labels=("good", "bad"),
    right=("good",),
)


def rows_of(subject: EvaluatedModel, rating: RatingSpec, samples: int = 1) -> list[Any]:
    task = TaskSpec(
        "made",
        "rated",
        DataSpec(file="a.jsonl"),
        prompt=PromptSpec(context="Tell of {{ q }}", target="{{ q }}!"),
        answer=AnswerSpec(8, stop=(), search="sample", samples=samples),
        rating=rating,
    )
    assert task.check() == []
    questions = [with_shots(task, item, []) for item in ITEMS]
    return list(make_method(subject, task, questions, 3).answer([0, 1]))


def test_toxicity_measures_are_the_papers(
    tiny: EvaluatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.5, 0.2, 0.4, 0.3, 0.0])
    monkeypatch.setattr(rated, "toxicity", lambda text: next(scores))
    first, second = rows_of(tiny, RatingSpec(), samples=3)
    assert first.metrics == pytest.approx(
        {"expected_max_toxicity": 0.5, "toxic_probability": 1.0, "mean_toxicity": 0.8 / 3}
    )
    assert second.metrics == pytest.approx(
        {"expected_max_toxicity": 0.4, "toxic_probability": 0.0, "mean_toxicity": 0.7 / 3}
    )
    assert len(first.texts) == 3


@pytest.mark.parametrize("by", ["refusal", "over_refusal"])
def test_refusals_are_counted(
    tiny: EvaluatedModel, monkeypatch: pytest.MonkeyPatch, by: Any
) -> None:
    replies = {"the sea": "I cannot help with that.", "the dog": "Gladly."}
    monkeypatch.setattr(
        writing.Writer,
        "write",
        lambda *_, **__: ([[replies[item.fields["q"]]] for item in ITEMS], [0, 0]),
    )
    rows = rows_of(tiny, RatingSpec(by=by))
    assert [row.metrics for row in rows] == [{f"{by}_rate": 1.0}, {f"{by}_rate": 0.0}]
    assert [row.verdicts for row in rows] == [["refused"], ["not refused"]]


def test_a_grader_reads_the_answer_and_chooses_a_label(tiny: EvaluatedModel) -> None:
    rows = rows_of(tiny, GRADER, samples=2)
    for row, item in zip(rows, ITEMS, strict=True):
        chances = []
        for text in row.texts:
            said = f"Tell of {item.fields['q']} | {item.fields['q']}! | {text.strip()} | Grade:"
            pairs = tiny.encode_pairs([(said, " good"), (said, " bad")])
            totals = [each.total for each in LikelihoodReader(tiny.model).read(pairs)]
            chances.append(float(1 / (1 + np.exp(totals[1] - totals[0]))))
        assert row.metrics["probability_right"] == pytest.approx(np.mean(chances), abs=1e-4)
        right = np.mean([chance > 0.5 for chance in chances])
        assert row.metrics["graded_right"] == pytest.approx(right)
        assert [each["good"] for each in row.ratings] == pytest.approx(chances, abs=1e-4)


def test_labels_probabilities_add_up_in_any_number(tiny: EvaluatedModel) -> None:
    words = LabelWords(tiny, ("yes", "no", "perhaps"))
    prompts = [f"is it {n}?" for n in range(20)]
    found = words.probabilities(prompts)
    assert len(found) == 20
    assert [sum(each.values()) for each in found] == pytest.approx([1.0] * 20)
    assert found[19] == pytest.approx(words.probabilities(prompts[19:])[0], abs=1e-5)


def test_a_classifier_of_ones_own_scores_in_the_patterns_place(
    tiny: EvaluatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.evaluation.functions import classification
    from lmsmith.evaluation.tasks.data import read_items

    file = tmp_path / "few.jsonl"
    shown = [{"input": "you fool", "label": "rude"}, {"input": "good day", "label": "kind"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in shown))
    task = classification("tone", "Is it rude?", ["rude", "kind"], str(file))
    monkeypatch.setattr(rated, "find_tasks", lambda words: [task])
    spec = RatingSpec(classifier="tone", label="rude")
    rows = rows_of(tiny, spec)
    function = TextFunction(tiny, task, list(read_items(file, task.data)))
    for row in rows:
        (said,) = function([row.texts[0].strip() or "(nothing)"])
        chance = said["probabilities"]["rude"]
        assert row.metrics["expected_max_toxicity"] == pytest.approx(chance, abs=1e-5)
    before = rater_identity(tiny, spec)
    file.write_text(file.read_text() + '{"input": "hello", "label": "kind"}\n')
    assert rater_identity(tiny, spec) != before
    beside = classification("tone", "Is it rude?", ["rude", "kind"], file.name)
    monkeypatch.setattr(rated, "find_tasks", lambda words: [beside])
    with pytest.raises(UserError, match=r"few\.jsonl: not in any of"):
        classifier_score(tiny, spec)
    assert classifier_score(tiny, spec, [tmp_path])(["you fool"])[0] > 0
    assert rater_identity(tiny, spec, [tmp_path])["examples"]
    with pytest.raises(UserError, match="no label 'mean'"):
        classifier_score(tiny, RatingSpec(classifier="tone", label="mean"), [tmp_path])


@pytest.mark.parametrize(
    ("rating", "said"),
    [
        (RatingSpec(by="model"), ["prompt", "labels", "right"]),
        (RatingSpec(by="model", prompt="x", labels=("a", "b"), right=("c",)), ["right"]),
        (RatingSpec(classifier="tone"), ["classifier"]),
    ],
)
def test_ratings_that_cannot_be_made_are_told(rating: RatingSpec, said: list[str]) -> None:
    assert [each.key for each in rating.check()] == said


def test_a_grading_template_names_what_it_may(make_tiny: Callable[..., EvaluatedModel]) -> None:
    wrong = RatingSpec(by="model", prompt="{{ gold }}", labels=("a", "b"), right=("a",))
    with pytest.raises(UserError, match="prompt, target and answer"):
        rows_of(make_tiny(), wrong)
