"""The page of ``lmsmith study scale``: what rises, the curves, the tables, the law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmsmith.core.files import atomic_write
from lmsmith.core.version import VERSION
from lmsmith.report import numbers
from lmsmith.report.run.page import render
from lmsmith.report.study.scale_figures import draw_law, draw_pattern, draw_sum_sizes, draw_sums
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
from lmsmith.studies.scale.patterns import PATTERNS, best_accuracy
from lmsmith.studies.scale.running import ScalePlan
from lmsmith.studies.scale.sentences import entropy_per_character

Measured = Mapping[str, Any]

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
    """What results.json and ``--json`` hold."""
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
    def shown(counts: Sequence[int], interval: Interval) -> dict[str, float]:
        return {"right": counts[0], "items": counts[1], **vars(interval)}

    return {
        **measured,
        "patterns": {
            kind: {
                shots: shown(counts, pattern_interval(measured, kind, int(shots)))
                for shots, counts in by_shots.items()
            }
            for kind, by_shots in measured["patterns"].items()
        },
        "sums": {
            style: {
                digits: shown(counts, sum_interval(measured, style, int(digits)))
                for digits, counts in by_digits.items()
            }
            for style, by_digits in measured["sums"].items()
        },
    }


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
                "head": [f"{shots} shots" if shots != 1 else "1 shot" for shots in SHOTS],
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
    path = folder / "report.html"
    atomic_write(path, render("scale.html.j2", context))
    return path


def _bound_rows(kind: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """What can be known at best, as one more row of a pattern's table; none where it is all."""
    bound = best_accuracy(kind)
    if bound is None:
        return []
    return [
        ("all that the examples tell, on average", [(numbers.percent(bound(s)), "") for s in SHOTS])
    ]


def rise_row(rise: Rise) -> dict[str, Any]:
    """A rise in words."""
    return {
        "what": {"shots": "with shots", "size": "with size", "chain": "with a chain"}[rise.what],
        "task": TITLES[rise.task][0] if rise.task in TITLES else rise.task,
        "low": rise.low,
        "high": rise.high,
        "before": shown_share(rise.before),
        "after": shown_share(rise.after),
        "clear": "clear" if rise.is_clear else "not clear",
    }


def shown_share(interval: Interval) -> str:
    """``97.5 % (95.5 to 98.6 %)``."""
    ends = numbers.percent_interval(interval.low, interval.high)
    return f"{numbers.percent(interval.value)} ({ends})"


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
    known = ""
    if family == "sentences":
        known = f" The entropy of these sentences is {entropy_per_character():.3f}."
    return (
        f"L(C) = {numbers.number(law.scale)} · C^{numbers.fixed(law.exponent, 3)} + "
        f"{numbers.fixed(law.irreducible, 3)}: predicted {numbers.fixed(prediction.predicted, 4)}, "
        f"measured {numbers.fixed(prediction.measured, 4)}, "
        f"{numbers.signed(100 * prediction.error, 1)} %.{known}"
    )


def _model_row(measured: Measured) -> dict[str, Any]:
    return {
        "name": measured["model"],
        "parameters": numbers.number(float(measured["parameters"])),
        "compute": f"{measured['compute']:.2e}",
        "losses": [
            (
                numbers.fixed(measured["losses"][family]["value"], 4),
                f"{measured['losses'][family]['low']:.4f} to "
                f"{measured['losses'][family]['high']:.4f}",
            )
            for family in SHARES
        ],
    }
