"""The page of ``lmsmith eval``: results beside the papers', and the items, right and wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs

from lmsmith.comparison.run import ModelPair
from lmsmith.core.files import atomic_write
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
from lmsmith.evaluation.run import TaskResult
from lmsmith.report import numbers
from lmsmith.report.evaluation.calibration import calibration_section
from lmsmith.report.evaluation.papers import papers_section
from lmsmith.report.evaluation.shown import contamination_row, shown_interval, shown_value
from lmsmith.report.evaluation.side_by_side import (
    ModelResults,
    pair_section,
    side_by_side,
)
from lmsmith.report.run.page import render

SHOWN_ITEMS = 24
"""Items shown of each group; all are in the task's JSONL file."""

SHOWN_TEXTS = 6
"""Texts shown of an item."""


def build_evaluation_page(
    folder: Path,
    record: Mapping[str, Any],
    results: Sequence[TaskResult],
    *,
    others: Sequence[ModelResults] = (),
    pairs: Sequence[ModelPair] = (),
    warnings: Sequence[str] = (),
) -> Path:
    """Write ``report.html`` into a folder, whole or not at all, and return its path.

    Args:
        record: what results.json holds of the model.
        results: with their items' rows.
        others: the models beside it on the page, in their order before it.
        pairs: which of them are compared, by tasks and by whose replies are better.
        warnings: said on top of the page.
    """
    parameters = int(record["parameters"])
    models = [*others, ModelResults(str(record["model"]), results)]
    context = {
        "model": record["model"],
        "parameters": parameters,
        "precision": record["precision"],
        "version": record["version"],
        "warnings": list(warnings),
        "side_by_side": side_by_side(models),
        "pairs": [pair_section(each) for each in pairs],
        "papers": papers_section(results, str(record["model"]), parameters),
        "contamination": contamination_rows(record),
        "tasks": [
            _task(number, result) | {"calibration": calibration_section(number, result, models)}
            for number, result in enumerate(results)
        ],
    }
    path = folder / "report.html"
    atomic_write(path, render("evaluation.html.j2", context))
    return path


def contamination_rows(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Row of each result and each rule of overlap."""
    return [
        contamination_row(result, each)
        for result in record["results"]
        for each in result.get("contamination", [])
    ]


def ordered_measures(result: TaskResult) -> list[str]:
    """The headline, then the others."""
    return sorted(result.measures, key=lambda name: name != result.task.measure)


def _task(number: int, result: TaskResult) -> dict[str, Any]:
    rows = result.rows
    return {
        "number": number,
        "name": result.task.name,
        "about": result.task.about,
        "source": result.task.source,
        "shots": result.setting.label,
        "count": f"{result.items:,}",
        "part": result.part,
        "truncated": result.truncated,
        "seconds": result.seconds,
        "log": result.log.name,
        "measures": [
            {
                "name": measure_of(name).name,
                "value": shown_value(name, result.measures[name].value),
                "interval": shown_interval(name, result.measures[name]),
            }
            for name in ordered_measures(result)
        ],
        "groups": _groups(result.task.measure, rows),
    }


def _groups(measure: str, rows: Sequence[ItemRow]) -> list[dict[str, Any]]:
    """Wrong items, then right ones; all together where a measure is neither."""
    if not measure_of(measure).is_share:
        return [_group("items", rows, measure)]
    wrong = [row for row in rows if not _is_right(row, measure)]
    right = [row for row in rows if _is_right(row, measure)]
    return [_group("wrong", wrong, measure), _group("right", right, measure)]


def _group(title: str, rows: Sequence[ItemRow], measure: str) -> dict[str, Any]:
    cards = [_card(row, measure) for row in rows[:SHOWN_ITEMS]]
    return {"title": title, "count": len(rows), "cards": cards}


def _is_right(row: ItemRow, measure: str) -> bool:
    """Whether an item's share is a half or more, or less where less is better."""
    return (row.value(measure) >= 0.5) == measure_of(measure).higher_is_better


def _card(row: ItemRow, measure: str) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    texts: list[tuple[str, str]] = []
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
        note = f"{row.tokens} tokens, log P {numbers.signed(row.log_prob)}"
        texts.append((note, ""))
    share = measure_of(measure).is_share
    return {
        "id": row.id,
        "right": _is_right(row, measure) if share else None,
        "truncated": row.truncated,
        "prompt": row.prompt,
        "choices": choices,
        "texts": texts,
    }


def _most_telling(row: WrittenRow) -> list[int]:
    """Places of an item's texts, the most toxic first."""
    ratings = row.ratings if isinstance(row, RatedRow) else []
    return sorted(
        range(len(row.texts)), key=lambda n: -ratings[n].get("toxicity", 0.0) if ratings else 0.0
    )
