"""Figures of a translator: its loss, and the attention between a sentence and its translation."""

from __future__ import annotations

from lmsmith.core.files import growing_rows, read_json
from lmsmith.report import drawing, numbers
from lmsmith.report.drawing import COLOURS, ReportFigure, canvas, pick
from lmsmith.report.run.records import Row, RunRecord, as_table
from lmsmith.runs.metrics_log import read_metrics

STAGE = "translate"

MOST_PIECES = 40
"""Most pieces of a sentence that is drawn."""


def draw_translator(run: RunRecord) -> list[ReportFigure | None]:
    """The loss, and the attention of the sentences that have one."""
    rows = growing_rows(run.folder / STAGE / "samples.jsonl")
    drawn = [row for row in rows if as_table(row.get("attention"))]
    return [draw_loss(run), *(draw_attention(row, place) for place, row in enumerate(drawn))]


def draw_loss(run: RunRecord) -> ReportFigure | None:
    """Loss of a target token in training, smoothed targets, and on the validation pairs."""
    rows = read_metrics(run.folder / STAGE / "metrics.jsonl")
    train, validation = pick(rows, "loss"), pick(rows, "validation/loss")
    if not train:
        return None
    path = run.folder / STAGE / "bleu.json"
    measured = as_table(read_json(path)) if path.is_file() else {}
    with canvas() as (figure, (axes,)):
        drawing.noisy_line(axes, train, COLOURS["base"], "training, smoothed targets")
        drawing.marked_line(axes, validation, "validation")
        drawing.label_axes(axes, "step", "nats per token")
        drawing.legend_above(axes)
        bleu = ""
        if measured:
            score, count = numbers.fixed(measured.get("bleu"), 2), measured.get("sentences")
            bleu = f" BLEU {score} on {count} sentences: {measured.get('signature')}."
        return ReportFigure.of(
            figure,
            "translate-loss",
            "Loss of a token",
            "The training loss has dropout and label smoothing, which keep it above the "
            f"validation's.{bleu}",
            "Line chart of the loss over steps, training and validation.",
        )


def draw_attention(row: Row, place: int) -> ReportFigure | None:
    """How much each piece of the translation looked at each piece of the source."""
    attended = as_table(row.get("attention"))
    source, target = _texts(attended.get("source")), _texts(attended.get("target"))
    weights = attended.get("weights")
    if not source or not target or not isinstance(weights, list) or len(weights) != len(target):
        return None
    with canvas((4.3, 4.0)) as (figure, (axes,)):
        drawing.draw_weights(axes, source[:MOST_PIECES], target[:MOST_PIECES], weights)
        return ReportFigure.of(
            figure,
            f"translate-attention-{place}",
            "Attention between two sentences",
            f"“{row.get('source')}” became “{row.get('translation')}”; a person wrote "
            f"“{row.get('reference')}”. A row is a piece of the translation: the darker a cell, "
            "the more it looked at that piece of the source (last layer, mean of the heads).",
            "Table of attention weights, a row for each piece of the translation.",
        )


def _texts(values: object) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []
