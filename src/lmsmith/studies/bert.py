"""GPT against BERT: accuracy of both on the same examples, item by item."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmsmith.statistics.intervals import Interval, bootstrap_ratio, wilson_interval

MODELS = ("gpt", "bert")

Answered = Mapping[str, Sequence[float]]
"""An example's texts → 1 or 0 for each time it was answered, right or wrong."""


@dataclass(frozen=True)
class Comparison:
    """Accuracy of both models on a task, the mean over seeds.

    The intervals are of examples, which are resampled with all that was answered to them; the
    difference is of the same examples (GPT's accuracy − BERT's).

    Attributes:
        seeds: each model's accuracy with each seed.
    """

    accuracy: Mapping[str, Interval]
    seeds: Mapping[str, list[Interval]]
    difference: Interval
    examples: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def answered(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Whether each example was answered rightly, of the rows of predictions.jsonl."""
    found: dict[str, list[float]] = {}
    for row in rows:
        key = json.dumps([row["texts"], row.get("answers")])
        found.setdefault(key, []).append(float(row["label"] == row["right"]))
    return found


def together(runs: Sequence[Answered]) -> dict[str, list[float]]:
    """The answers of several runs, by example."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for key, values in run.items():
            found.setdefault(key, []).extend(values)
    return found


def compare(gpt: Sequence[Answered], bert: Sequence[Answered]) -> Comparison:
    """Both models' runs, one a seed, on the same examples.

    Raises:
        ValueError: they were not measured on the same examples.
    """
    runs = {"gpt": gpt, "bert": bert}
    by_example = {name: together(each) for name, each in runs.items()}
    first, second = (by_example[name] for name in MODELS)
    if {key: len(each) for key, each in first.items()} != {k: len(v) for k, v in second.items()}:
        raise ValueError("the models were measured on different examples")
    gaps = [sum(first[key]) - sum(second[key]) for key in first]
    return Comparison(
        {name: _accuracy(each) for name, each in by_example.items()},
        {name: [_accuracy(run) for run in each] for name, each in runs.items()},
        bootstrap_ratio(gaps, [len(each) for each in first.values()]),
        len(first),
    )


def _accuracy(found: Answered) -> Interval:
    return bootstrap_ratio([sum(each) for each in found.values()], [len(v) for v in found.values()])


def masked_accuracy(metrics: Mapping[str, float]) -> dict[str, Interval]:
    """Share of held-out hidden tokens that each model names, with Wilson's interval.

    Args:
        metrics: of the stage masked_lm.
    """
    targets = int(metrics.get("held_out_targets", 0))
    names = {"bert": "masked", "gpt": "decoder", "commonest token": "unigram"}
    return {
        name: wilson_interval(round(metrics[f"{prefix}_accuracy"] * targets), targets)
        for name, prefix in names.items()
        if targets and f"{prefix}_accuracy" in metrics
    }
