"""The page of ``lmsmith eval``: results beside the papers', and the items, right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import structs

from lmsmith.comparison.run import ModelPair
from lmsmith.evaluation.calibration import Calibration, calibrate, calibrate_before_and_after
from lmsmith.evaluation.measures import measure_of
from lmsmith.evaluation.rows import (
    AnswerRow,
    ChoiceRow,
    ClozeRow,
    DocumentRow,
    ItemRow,
    ProgramRow,
    RatedRow,
    WrittenRow,
)
from lmsmith.evaluation.run import ModelEvaluation, TaskResult
from lmsmith.report import numbers
from lmsmith.report.drawing import COLOURS, canvas, draw_reliability, themed_svg
from lmsmith.report.evaluation.comparison import MODEL_ROLES, pair_section, side_by_side
from lmsmith.report.evaluation.papers import papers_section
from lmsmith.report.evaluation.shown import contamination_rows, shown_interval, shown_value
from lmsmith.report.run.page import write_page

SHOWN_ITEMS = 24
"""Items shown of each group; all are in the task's JSONL file."""

SHOWN_TEXTS = 6
"""Texts shown of an item."""

FEWEST_CALIBRATED = 20
"""Fewest items for a reliability diagram."""


def build_evaluation_page(
    found: ModelEvaluation,
    others: Sequence[ModelEvaluation] = (),
    pairs: Sequence[ModelPair] = (),
) -> Path:
    """Write ``report.html`` into the model's folder, whole or not at all, and return its path.

    Args:
        others: the models beside it on the page, in their order before it.
        pairs: the comparisons of two models.
    """
    record, results, models = found.record, found.results, [*others, found]
    context = {
        "record": record,
        "side_by_side": side_by_side(models),
        "pairs": [pair_section(each) for each in pairs],
        "papers": papers_section(results, found.name, int(record["parameters"])),
        "contamination": contamination_rows(record),
        "tasks": [_task(number, result, models) for number, result in enumerate(results)],
    }
    return write_page(found.folder, "evaluation.html.j2", context)


def ordered_measures(result: TaskResult) -> list[str]:
    """The headline, then the others."""
    return sorted(result.measures, key=lambda name: name != result.task.measure)


def _task(number: int, result: TaskResult, models: Sequence[ModelEvaluation]) -> dict[str, Any]:
    return {
        "number": number,
        "result": result,
        "calibration": calibration_section(number, result, models),
        "measures": [
            {
                "name": measure_of(name).name,
                "value": shown_value(name, result.measures[name].value),
                "interval": shown_interval(name, result.measures[name]),
            }
            for name in ordered_measures(result)
        ],
        "groups": _groups(result.task.measure, result.rows),
    }


def _groups(measure: str, rows: Sequence[ItemRow]) -> list[dict[str, Any]]:
    """Wrong items, then right ones; all together where a measure is neither."""
    if not measure_of(measure).is_share:
        return [_group("items", rows, measure)]
    return [
        _group(title, [row for row in rows if _is_right(row, measure) == right], measure)
        for title, right in (("wrong", False), ("right", True))
    ]


def _group(title: str, rows: Sequence[ItemRow], measure: str) -> dict[str, Any]:
    cards = [_card(row, measure) for row in rows[:SHOWN_ITEMS]]
    return {"title": title, "count": len(rows), "cards": cards}


def _is_right(row: ItemRow, measure: str) -> bool:
    """Whether an item's share is a half or more, or less where less is better."""
    return (row.value(measure) >= 0.5) == measure_of(measure).higher_is_better


def _card(row: ItemRow, measure: str) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    texts: list[tuple[str, str]] = []
    share = measure_of(measure).is_share
    if isinstance(row, ChoiceRow):
        chosen = row.chosen.get(measure)
        choices = [
            structs.asdict(choice) | {"gold": number == row.gold, "chosen": number == chosen}
            for number, choice in enumerate(row.choices)
        ]
    if isinstance(row, AnswerRow):
        texts = [(f"reasoning {n + 1}", text) for n, text in enumerate(row.reasoning)]
    if isinstance(row, WrittenRow):
        for number in _most_telling(row)[:SHOWN_TEXTS]:
            said = f": {row.verdicts[number]}" if isinstance(row, ProgramRow | RatedRow) else ""
            texts.append((f"written{said}", row.texts[number].strip() or "(nothing)"))
        if len(row.texts) > SHOWN_TEXTS:
            texts.append((f"and {len(row.texts) - SHOWN_TEXTS} more", ""))
    if isinstance(row, AnswerRow):
        texts.append(("read as the answer", row.answer or "(nothing)"))
    if row.right and not choices:
        texts.append(("right", row.right))
    if isinstance(row, ClozeRow | DocumentRow):
        texts.append((f"{row.tokens} tokens, log P {numbers.signed(row.log_prob)}", ""))
    return {
        "row": row,
        "right": _is_right(row, measure) if share else None,
        "choices": choices,
        "texts": texts,
    }


def _most_telling(row: WrittenRow) -> list[int]:
    """Places of an item's texts, the most toxic first."""
    ratings = row.ratings if isinstance(row, RatedRow) else []
    return sorted(
        range(len(row.texts)), key=lambda n: -ratings[n].get("toxicity", 0.0) if ratings else 0.0
    )


def calibration_section(
    number: int, result: TaskResult, models: Sequence[ModelEvaluation]
) -> list[dict[str, str]]:
    """Figures of a multiple-choice task, each with its caption.

    One is of the model, as it is and with a temperature. Where other models answered the same
    items a second one sets all side by side, as they are, on all items.

    Args:
        result: the model's own.
        models: all of them, the model last.
    """
    rows, measure = _choice_rows(result), result.task.measure
    if len(rows) < FEWEST_CALIBRATED:
        return []
    before, after = calibrate_before_and_after(rows, measure)
    lines = [("as it is", before), ("with temperature", after)]
    caption = (
        f"Confidence against being right, on {before.items} items. Expected calibration error "
        f"{_errors(before)}; with temperature {numbers.number(after.temperature)}, fitted on the "
        f"other items, {numbers.fixed(after.equal_width, 3)} and "
        f"{numbers.fixed(after.equal_mass, 3)}."
    )
    figures = [{"svg": _draw_calibration(f"calibration-{number}", lines), "caption": caption}]
    beside = [
        (each.name, calibrate(_choice_rows(found), measure))
        for each in models
        for found in each.results
        if found.name == result.name
    ]
    if len(beside) > 1:
        said = "; ".join(
            f"{name} is on average {numbers.percent(each.confidence)} sure and "
            f"{numbers.percent(each.accuracy)} right, expected calibration error {_errors(each)}"
            for name, each in beside
        )
        svg = _draw_calibration(f"calibration-{number}-both", beside)
        which = "Both" if len(beside) == 2 else "All"
        caption = f"{which} models on all {beside[-1][1].items} items: {said}."
        figures.append({"svg": svg, "caption": caption})
    return figures


def _choice_rows(result: TaskResult) -> list[ChoiceRow]:
    return [row for row in result.rows if isinstance(row, ChoiceRow)]


def _errors(each: Calibration) -> str:
    return (
        f"{numbers.fixed(each.equal_width, 3)} with bins of equal width, "
        f"{numbers.fixed(each.equal_mass, 3)} with bins of equally many items"
    )


def _draw_calibration(name: str, lines: Sequence[tuple[str, Calibration]]) -> str:
    """The reliability diagram of calibrations; a dot's size is its share of the items."""
    curves = [
        (
            label,
            COLOURS[MODEL_ROLES[place % len(MODEL_ROLES)]],
            [(bin["predicted"], bin["observed"], bin["count"] / each.items) for bin in each.bins],
        )
        for place, (label, each) in enumerate(lines)
    ]
    said = "how sure the model is of its choice"
    with canvas() as (figure, (axes,)):
        draw_reliability(axes, curves, said, "how often it is right")
        axes.legend(loc="upper left")
        return themed_svg(figure, name, "Reliability diagram: confidence against accuracy.")
