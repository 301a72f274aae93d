"""How well a classifier does, beside rules that know no language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsmith.corpus.labelled.task import Example, LabelledTask
from lmsmith.models.classifier import Classifier
from lmsmith.statistics import bag_of_words
from lmsmith.statistics.classification import measure_labels, measure_scores
from lmsmith.statistics.intervals import Interval
from lmsmith.training.classification import EncodedExample, predicted_number


@dataclass(frozen=True)
class Measured:
    """A task's measures of some predictions.

    Attributes:
        intervals: by measure, the deciding one first.
        constant: whether all predictions are the same, and what is right is not.
    """

    intervals: dict[str, Interval]
    constant: bool

    @property
    def name(self) -> str:
        """The deciding measure."""
        return next(iter(self.intervals))

    @property
    def value(self) -> float:
        return self.intervals[self.name].value

    def named(self, prefix: str) -> dict[str, float]:
        """``{prefix_measure: …, prefix_measure_low: …, …}``."""
        found: dict[str, float] = {}
        for name, interval in self.intervals.items():
            found |= interval.named(f"{prefix}_{name}")
        return found


def measure_task(
    task: LabelledTask,
    labels: Sequence[str],
    truth: Sequence[float],
    predicted: Sequence[float],
    *,
    intervals: bool = True,
) -> Measured:
    """The task's measures of predictions: numbers of labels or of answers, or numbers."""
    constant = len(set(truth)) > 1 and len(set(predicted)) == 1
    found: dict[str, Interval] = {}
    for name in task.chosen_measures:
        if task.numbers:
            found[name] = measure_scores(name, truth, predicted, intervals=intervals)
        else:
            classes = max(len(labels), int(max(*truth, *predicted)) + 1)
            positive = labels.index(task.positive) if task.positive else -1
            found[name] = measure_labels(
                name, truth, predicted, classes, positive, intervals=intervals
            )
    return Measured(found, constant)


def measure_predictions(
    task: LabelledTask,
    model: Classifier,
    examples: Sequence[EncodedExample],
    logits: Sequence[Tensor],
    *,
    intervals: bool = True,
) -> Measured:
    """The task's measures of a model's logits (`lmsmith.training.classification.predict`)."""
    truth = [each.target if task.numbers else each.label for each in examples]
    predicted = [_answer(model, each) for each in logits]
    labels = model.config.labels or task.labels  # a chooser's model has none
    return measure_task(task, labels, truth, predicted, intervals=intervals)


def _answer(model: Classifier, logits_k: Tensor) -> float:
    if model.config.predicts_numbers:
        return predicted_number(model, logits_k)
    return int(logits_k.argmax())


@dataclass(frozen=True)
class Baseline:
    """A rule's measures."""

    name: str
    measured: Measured

    @property
    def metrics(self) -> dict[str, float]:
        return self.measured.named(self.name)


def baselines(
    task: LabelledTask,
    labels: Sequence[str],
    train: Sequence[Example],
    test: Sequence[Example],
) -> list[Baseline]:
    """The commonest label for all, and a logistic regression over words, where they exist."""
    found = []
    truth = [each.target if task.numbers else each.label for each in test]

    def add(name: str, predicted: Sequence[float]) -> None:
        found.append(Baseline(name, measure_task(task, labels, truth, predicted)))

    if not task.numbers:
        commonest = Counter(each.label for each in train).most_common(1)[0][0]
        add("majority", [commonest] * len(test))
    if task.form != "multiple_choice" and bag_of_words.is_available():
        texts, asked = [each.texts for each in train], [each.texts for each in test]
        if task.numbers:
            numbers = [each.target for each in train]
            add("bag_of_words", bag_of_words.predict_numbers(texts, numbers, asked).tolist())
        elif len({each.label for each in train}) > 1:
            known = [each.label for each in train]
            add("bag_of_words", bag_of_words.predict_labels(texts, known, asked).tolist())
    return found


def answer_row(model: Classifier, answers: Sequence[str], logits_k: Tensor) -> dict[str, object]:
    """A label with every label's probability; an answer with every answer's; or a number."""
    if model.config.predicts_numbers:
        return {"number": round(predicted_number(model, logits_k), 6)}
    names = list(model.config.labels or answers)
    chances = torch.softmax(logits_k.double(), dim=0).tolist()
    best = int(logits_k.argmax())
    row: dict[str, object] = {"label": names[best], "probability": round(chances[best], 6)}
    if not model.config.labels:
        row["place"] = best
        row["probabilities"] = [round(chance, 6) for chance in chances]
    else:
        rounded = [round(chance, 6) for chance in chances]
        row["probabilities"] = dict(zip(names, rounded, strict=True))
    return row


def prediction_rows(
    model: Classifier,
    encoded: Sequence[EncodedExample],
    examples: Sequence[Example],
    logits: Sequence[Tensor],
) -> Iterator[dict[str, object]]:
    """A row an example: its texts, the right answer, what the model said and the loss."""
    for example, tokens, logits_k in zip(examples, encoded, logits, strict=True):
        right: object = example.target
        if not model.config.predicts_numbers:
            right = (model.config.labels or example.answers)[example.label]
            chance = float(torch.softmax(logits_k.double(), dim=0)[example.label])
            error = 1.0 - chance
        else:
            error = abs(predicted_number(model, logits_k) - example.target)
        yield {
            "texts": list(example.texts),
            **({"answers": list(example.answers)} if example.answers else {}),
            "right": right,
            **answer_row(model, example.answers, logits_k),
            "error": round(error, 6),
            "cut": tokens.cut,
        }
