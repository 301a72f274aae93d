"""The page of ``lmsmith study scale``: rises, curves, tables, and the law of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmsmith.core.version import VERSION
from lmsmith.report import numbers
from lmsmith.report.evaluation.shown import share_with_interval
from lmsmith.report.run.page import write_page
from lmsmith.report.study.figures import (
    BEST,
    Measured,
    draw_law,
    draw_pattern,
    draw_sum_sizes,
    draw_sums,
    shots_label,
)
from lmsmith.statistics.fits import Prediction
from lmsmith.statistics.intervals import Interval
from lmsmith.studies.scale.documents import SHARES
from lmsmith.studies.scale.findings import (
    Rise,
    digits_of,
    find_rises,
    pattern_interval,
    predict_losses,
    sum_interval,
)
from lmsmith.studies.scale.measuring import SHOTS, STYLES
from lmsmith.studies.scale.running import ScalePlan
from lmsmith.studies.scale.texts import PATTERNS, best_accuracy, entropy_per_character

TITLES: Mapping[str, tuple[str, str]] = {
    "noisy_copies": (
        "Noisy copies",
        "A hidden word of three letters out of eight; every example is a copy of it in which each "
        "letter was replaced, with probability 0.3, by one drawn at random. Asked is the word.",
    ),
    "remove_symbols": (
        "Remove symbols",
        "Symbols stand between the letters; a hidden half of the symbols is to be removed.",
    ),
    "reorder": ("Reorder", "A word of four letters is written in another, hidden order."),
}


def scale_record(plan: ScalePlan, models: Sequence[Measured]) -> dict[str, Any]:
    """The record of results.json and ``--json``."""
    return {
        "study": "scale",
        "version": VERSION,
        "plan": asdict(plan),
        "models": [_with_intervals(each) for each in models],
        "best_accuracy": {
            kind: {str(shots): bound(shots) for shots in SHOTS}
            for kind in PATTERNS
            if (bound := best_accuracy(kind)) is not None
        },
        "rises": [rise.as_dict() for rise in find_rises(models)],
        "predictions": {
            family: None if found is None else {**asdict(found), "error": found.error}
            for family, found in predict_losses(models).items()
        },
        "entropy_of_sentences": entropy_per_character(),
    }


def _with_intervals(measured: Measured) -> dict[str, Any]:
    """A model's counts with the intervals of their shares."""

    def shown(part: str, interval_of: Callable[[Measured, str, int], Interval]) -> dict[str, Any]:
        return {
            name: {
                number: {"right": right, "items": items}
                | vars(interval_of(measured, name, int(number)))
                for number, (right, items) in counts.items()
            }
            for name, counts in measured[part].items()
        }

    found = {"patterns": shown("patterns", pattern_interval), "sums": shown("sums", sum_interval)}
    return {**measured, **found}


def build_scale_page(folder: Path, plan: ScalePlan, models: Sequence[Measured]) -> Path:
    """Write ``report.html`` into a folder, whole or not at all, and return its path."""
    predictions = predict_losses(models)
    digits = digits_of(models[-1])
    context = {
        "version": VERSION,
        "plan": plan,
        "tokens": numbers.large_count(float(models[-1]["trained_tokens"])),
        "rises": [rise_row(rise) for rise in find_rises(models)],
        "patterns": [
            {
                "title": TITLES[kind][0],
                "about": TITLES[kind][1],
                "svg": draw_pattern(f"pattern-{kind.replace('_', '-')}", kind, models),
                "head": [shots_label(shots) for shots in SHOTS],
                "rows": [
                    (each["model"], [share_cell(pattern_interval(each, kind, s)) for s in SHOTS])
                    for each in models
                ]
                + _bound_rows(kind),
            }
            for kind in PATTERNS
        ],
        "sums": {
            "svgs": [draw_sums("sums", models), draw_sum_sizes("sums-sizes", digits[-2], models)],
            "shown_digits": digits[-2],
            "head": [f"{count} digit{'s' if count > 1 else ''}" for count in digits],
            "rows": [
                (
                    f"{each['model']}, {'chain of thought' if style == 'chain' else 'direct'}",
                    [share_cell(sum_interval(each, style, count)) for count in digits],
                )
                for each in models
                for style in STYLES
            ],
        },
        "samples": models[-1]["samples"],
        "largest": models[-1]["model"],
        "laws": [
            {
                "family": family,
                "svg": draw_law(f"law-{family}", family, models, predictions[family]),
                "said": law_sentence(family, predictions[family]),
            }
            for family in SHARES
        ],
        "models": [_model_row(each) for each in models],
        "families": list(SHARES),
    }
    return write_page(folder, "scale.html.j2", context)


def _bound_rows(kind: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The most that can be known, as one more row of a pattern's table; none where it is all."""
    bound = best_accuracy(kind)
    if bound is None:
        return []
    cells = [(numbers.percent(bound(shots)), "") for shots in SHOTS]
    return [(BEST, cells)]


def rise_row(rise: Rise) -> dict[str, Any]:
    """A rise in words."""
    return {
        "what": {"shots": "with shots", "size": "with size", "chain": "with a chain"}[rise.what],
        "task": TITLES[rise.task][0] if rise.task in TITLES else rise.task,
        "low": rise.low,
        "high": rise.high,
        "before": share_with_interval(rise.before),
        "after": share_with_interval(rise.after),
        "clear": "clear" if rise.is_clear else "not clear",
    }


def share_cell(interval: Interval) -> tuple[str, str]:
    """The share and its interval, for two lines of a cell."""
    return numbers.percent(interval.value), numbers.percent_interval(interval.low, interval.high)


def law_sentence(family: str, prediction: Prediction | None) -> str:
    """The loss that smaller models predict, and the measured one."""
    if prediction is None:
        return "Too few models for a law: it takes four of two layers or more."
    if prediction.law is None or prediction.error is None:
        return "The smaller models' losses do not fall with compute: no law fits them."
    law = prediction.law
    known = f" The entropy of these sentences is {entropy_per_character():.3f}."
    return (
        f"L(C) = {numbers.number(law.scale)} · C^{numbers.fixed(law.exponent, 3)} + "
        f"{numbers.fixed(law.irreducible, 3)}: predicted {numbers.fixed(prediction.predicted, 4)}, "
        f"measured {numbers.fixed(prediction.measured, 4)}, "
        f"{numbers.signed(100 * prediction.error, 1)} %.{known if family == 'sentences' else ''}"
    )


def _model_row(measured: Measured) -> dict[str, Any]:
    losses = [measured["losses"][family] for family in SHARES]
    return {
        "name": measured["model"],
        "parameters": numbers.number(float(measured["parameters"])),
        "compute": f"{measured['compute']:.2e}",
        "losses": [
            (numbers.fixed(each["value"], 4), f"{each['low']:.4f} to {each['high']:.4f}")
            for each in losses
        ],
    }
