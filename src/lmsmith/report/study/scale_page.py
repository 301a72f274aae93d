"""The page of ``lmsmith study scale``: rises, curves, tables, and the law of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from lmsmith.statistics.intervals import Interval, wilson_interval
from lmsmith.studies.scale import findings
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
        "rises": [rise.as_dict() for rise in findings.find_rises(models)],
        "predictions": {
            family: None if found is None else {**asdict(found), "error": found.error}
            for family, found in findings.predict_losses(models).items()
        },
        "entropy_of_sentences": entropy_per_character(),
    }


def _with_intervals(measured: Measured) -> dict[str, Any]:
    """A model's counts with the intervals of their shares."""
    found = {
        part: {
            name: {
                number: {"right": right, "items": items} | vars(wilson_interval(right, items))
                for number, (right, items) in counts.items()
            }
            for name, counts in measured[part].items()
        }
        for part in ("patterns", "sums")
    }
    return {**measured, **found}


def build_scale_page(folder: Path, plan: ScalePlan, models: Sequence[Measured]) -> Path:
    """Write ``report.html`` into a folder, whole or not at all, and return its path."""
    digits = findings.digits_of(models[-1])
    context = {
        "version": VERSION,
        "plan": plan,
        "tokens": numbers.large_count(float(models[-1]["trained_tokens"])),
        "rises": [rise_row(rise) for rise in findings.find_rises(models)],
        "patterns": [_pattern(kind, models) for kind in PATTERNS],
        "sums": {
            "svgs": [draw_sums("sums", models), draw_sum_sizes("sums-sizes", digits[-2], models)],
            "shown_digits": digits[-2],
            "head": [f"{count} digit{'s' if count > 1 else ''}" for count in digits],
            "rows": [
                (
                    f"{each['model']}, {'chain of thought' if style == 'chain' else 'direct'}",
                    [share_cell(findings.sum_interval(each, style, count)) for count in digits],
                )
                for each in models
                for style in STYLES
            ],
        },
        "laws": {
            family: (law_sentence(family, found), draw_law(f"law-{family}", family, models, found))
            for family, found in findings.predict_losses(models).items()
        },
        "models": models,
    }
    return write_page(folder, "scale.html.j2", context)


def _pattern(kind: str, models: Sequence[Measured]) -> dict[str, Any]:
    rows = [
        (
            each["model"],
            [share_cell(findings.pattern_interval(each, kind, shots)) for shots in SHOTS],
        )
        for each in models
    ]
    bound = best_accuracy(kind)
    if bound is not None:
        rows.append((BEST, [(numbers.percent(bound(shots)), "") for shots in SHOTS]))
    return {
        "title": TITLES[kind][0],
        "about": TITLES[kind][1],
        "svg": draw_pattern(f"pattern-{kind.replace('_', '-')}", kind, models),
        "head": [shots_label(shots) for shots in SHOTS],
        "rows": rows,
    }


def rise_row(rise: findings.Rise) -> tuple[str, ...]:
    """A rise in words: its kind, task, the two shares, each after its name, and if it is clear."""
    return (
        {"shots": "with shots", "size": "with size", "chain": "with a chain"}[rise.what],
        TITLES[rise.task][0] if rise.task in TITLES else rise.task,
        rise.low,
        share_with_interval(rise.before),
        rise.high,
        share_with_interval(rise.after),
        "clear" if rise.is_clear else "not clear",
    )


def share_cell(interval: Interval) -> tuple[str, str]:
    """The share and its interval, for two lines of a cell."""
    return numbers.percent(interval.value), numbers.percent_interval(interval.low, interval.high)


def law_sentence(family: str, prediction: Prediction | None) -> str:
    """The loss that smaller models predict, and the measured one."""
    if prediction is None:
        return "Too few models for a law: it takes four of two layers or more."
    law = prediction.law
    if law is None or prediction.error is None:
        return "The smaller models' losses do not fall with compute: no law fits them."
    known = f" The entropy of these sentences is {entropy_per_character():.3f}."
    return (
        f"L(C) = {numbers.number(law.scale)} · C^{numbers.fixed(law.exponent, 3)} + "
        f"{numbers.fixed(law.irreducible, 3)}: predicted {numbers.fixed(prediction.predicted, 4)}, "
        f"measured {numbers.fixed(prediction.measured, 4)}, "
        f"{numbers.signed(100 * prediction.error, 1)} %.{known if family == 'sentences' else ''}"
    )
