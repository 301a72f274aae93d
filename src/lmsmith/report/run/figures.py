"""The report's figures: each one question, one picture and one sentence on what to look for."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lmsmith.core.files import read_json
from lmsmith.report import drawing, numbers
from lmsmith.report.drawing import COLOURS, ReportFigure, Series, canvas, pick, smooth
from lmsmith.report.numbers import as_number
from lmsmith.report.run.ppo_figures import draw_frontier, draw_ppo_curves, draw_win_rate
from lmsmith.report.run.records import RunRecord, as_table
from lmsmith.report.run.translation import draw_translator
from lmsmith.report.run.words import stage_title
from lmsmith.runs.metrics_log import read_metrics

LANGUAGE = ("pretrain", "sft", "distil", "emulator", "offsite")
"""Stages that learn to predict text."""


def draw_figures(run: RunRecord) -> dict[str, list[ReportFigure]]:
    """By heading, every figure that the run has numbers for, in the reading order of the page."""
    groups = {
        "Learning language": [draw_loss(run, stage) for stage in LANGUAGE],
        "Learning to translate": draw_translator(run),
        "Learning from labelled examples": [draw_classifier(run)],
        "Learning what is preferred": [
            draw(run, stage)
            for stage in ("reward", "judge")
            for draw in (draw_ranking_training, draw_reward_reliability)
        ],
        "PPO, iteration by iteration": draw_ppo_curves(run),
        "What PPO gained": [draw_win_rate(run), draw_frontier(run)],
    }
    found = {title: [f for f in figures if f is not None] for title, figures in groups.items()}
    return {title: figures for title, figures in found.items() if figures}


def draw_loss(run: RunRecord, stage: str) -> ReportFigure | None:
    """Bits per byte in training and on the validation split, over tokens (steps if not logged)."""
    folder = run.folder / stage
    rows, rows_alone = (
        read_metrics(folder / name) for name in ("metrics.jsonl", "without_teacher/metrics.jsonl")
    )
    batch = as_number(run.stages[stage].settings.get("batch_tokens"))
    if batch is not None:
        rows, rows_alone = (
            [{**row, "tokens": row["step"] * batch} for row in each] for each in (rows, rows_alone)
        )
    over = "tokens" if any("tokens" in row for row in rows) else "step"
    train = pick(rows, "bits_per_byte", over)
    validation = pick(rows, "validation/bits_per_byte", over)
    if not train and not validation:
        return None
    with canvas() as (figure, (axes,)):
        drawing.noisy_line(axes, train, COLOURS.get(stage, COLOURS["sft"]), "training")
        drawing.marked_line(axes, validation, "validation")
        if alone := pick(rows_alone, "validation/bits_per_byte", over):
            drawing.marked_line(axes, alone, "validation, without teacher", COLOURS["muted"])
        cut = _limit_to_the_learning(axes, train, validation)
        drawing.label_axes(axes, "tokens seen" if over == "tokens" else "step", "bits per byte")
        drawing.legend_above(axes)
        last = f" It ends at {numbers.fixed(validation.y[-1], 3)}." if validation else ""
        return ReportFigure.of(
            figure,
            f"{stage}-loss",
            f"{stage_title(stage)}: bits per byte",
            f"Both lines should fall and stay together; validation rising while training falls is "
            f"learning by heart.{last}{' The steep start is cut off.' if cut else ''}",
            f"Line chart of bits per byte over {over}s, training and validation.",
        )


def _limit_to_the_learning(axes: Axes, train: Series, validation: Series) -> bool:
    """Cut off the first steep fall, which would press all the rest flat; True if it was cut."""
    means = (smooth(train).y, validation.y)
    values = [value for mean in means for value in mean[len(mean) // 12 :]]
    low, high = min([*values, *train.y]), max(values)
    room = 0.06 * (high - low) or 0.05
    if max([*train.y, *validation.y]) <= high + 2 * room or len(values) < 8:
        return False
    axes.set_ylim(low - room, high + room)
    return True


def draw_classifier(run: RunRecord) -> ReportFigure | None:
    """Loss of the stage finetune in training and on validation, and the deciding measure."""
    rows = read_metrics(run.folder / "finetune" / "metrics.jsonl")
    loss, validation = pick(rows, "loss"), pick(rows, "validation/loss")
    if not loss:
        return None
    looked = {name for row in rows for name in row if name.startswith("validation/")}
    measure = next(iter(looked - {"validation/loss"}), "")
    with canvas(panels=2) as (figure, (left, right)):
        drawing.noisy_line(left, loss, COLOURS["sft"], "training")
        drawing.marked_line(left, validation, "validation")
        drawing.label_axes(left, "step", "loss of the task")
        drawing.legend_above(left)
        drawing.marked_line(right, pick(rows, measure), "validation")
        drawing.label_axes(right, "step", measure.removeprefix("validation/"))
        return ReportFigure.of(
            figure,
            "finetune-training",
            f"{stage_title('finetune')}: loss and {measure.removeprefix('validation/')}",
            "The weights with the best measure on validation are kept; a validation loss that "
            "rises while training falls is learning by heart.",
            "Two line charts over steps: the loss, and the measure on validation.",
        )


def draw_ranking_training(run: RunRecord, stage: str) -> ReportFigure | None:
    """Accuracy and loss of a reward model in training, side by side."""
    rows = read_metrics(run.folder / stage / "metrics.jsonl")
    accuracy, validation = pick(rows, "accuracy"), pick(rows, "validation/accuracy")
    loss, validation_loss = pick(rows, "loss"), pick(rows, "validation/loss")
    if not (accuracy or validation or loss):
        return None
    with canvas(panels=2) as (figure, (left, right)):
        drawing.noisy_line(left, accuracy, COLOURS[stage], "training")
        drawing.marked_line(left, validation, "validation")
        left.axhline(0.5, **drawing.REFERENCE)
        left.yaxis.set_major_formatter(PercentFormatter(1.0))
        drawing.label_axes(left, "step", "pairs ordered right")
        drawing.legend_above(left)
        drawing.noisy_line(right, loss, COLOURS[stage], "training")
        drawing.marked_line(right, validation_loss, "validation")
        drawing.label_axes(right, "step", "ranking loss, nats")
        return ReportFigure.of(
            figure,
            f"{stage}-training",
            f"{stage_title(stage)}: accuracy and loss",
            "Validation accuracy should rise above the dotted 50 % of a coin; training stops "
            "where it no longer does.",
            "Two line charts over steps: pairs ordered right, and ranking loss.",
        )


def draw_reward_reliability(run: RunRecord, stage: str) -> ReportFigure | None:
    """Stated against observed frequency that one reply beats another."""
    bins = _calibration(run, stage)
    if not bins:
        return None
    most = max(count for *_, count in bins)
    points = [(predicted, observed, count / most) for predicted, observed, count in bins]
    with canvas() as (figure, (axes,)):
        said = "how sure the model says it is that a reply wins"
        drawing.draw_reliability(axes, [("", COLOURS[stage], points)], said, "how often it wins")
        return ReportFigure.of(
            figure,
            f"{stage}-reliability",
            f"{stage_title(stage)}: does it know how sure it may be?",
            "On the dotted diagonal 70 % said is 70 % true; a curve flatter than it is too sure of "
            "itself (a larger point stands for more pairs).",
            "Reliability diagram: stated against observed frequency of winning.",
        )


def _calibration(run: RunRecord, stage: str) -> list[tuple[float, float, float]]:
    """A model's bins as (predicted, observed, count); empty ones are left out."""
    path = run.folder / "evaluate" / "calibration.json"
    bins = as_table(read_json(path)).get(stage) if path.is_file() else None
    found = []
    for row in bins if isinstance(bins, list) else ():
        predicted, observed, count = (
            as_number(row.get(key)) for key in ("predicted", "observed", "count")
        )
        if predicted is not None and observed is not None and count:
            found.append((predicted, observed, count))
    return found


def draw_time(run: RunRecord) -> ReportFigure | None:
    """Wall time of every stage as bars, PPO's split into rollout, scoring and update."""
    times = {stage.name: s for stage in run.stages.values() if (s := stage.wall_seconds)}
    if not times:
        return None
    longest = max(times.values())
    centred: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5}
    with canvas((5.2, 0.3 + 0.25 * len(times))) as (figure, (axes,)):
        for place, (stage, total) in enumerate(times.items()):
            left, colour = 0.0, COLOURS.get(stage, COLOURS["muted"])
            parts = _time_parts(run, stage, total)
            for (label, seconds), alpha in zip(parts, (0.95, 0.70, 0.50, 0.30), strict=False):
                axes.barh(place, seconds, left=left, height=0.66, color=colour, alpha=alpha)
                if label and seconds > 0.12 * longest:
                    ink = COLOURS["paper" if alpha > 0.6 else "ink"]
                    axes.text(left + seconds / 2, place, label, color=ink, **centred)
                left += seconds
            axes.text(left + 0.008 * longest, place, numbers.duration(total), va="center")
        axes.set_yticks(range(len(times)), [stage_title(stage) for stage in times])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.2)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        return ReportFigure.of(
            figure,
            "time",
            "Where the time went",
            "A bar a stage; a stage that took much longer than it gained above is where to save.",
            "Bar chart of the wall time of each stage.",
        )


def _time_parts(run: RunRecord, stage: str, total: float) -> list[tuple[str, float]]:
    """``total`` seconds of a stage in named parts; one unnamed part where none was measured."""
    rows = read_metrics(run.folder / stage / "metrics.jsonl")
    sums = {name: sum(pick(rows, f"seconds/{name}").y) for name in ("rollout", "score", "update")}
    parts = [(name, seconds) for name, seconds in sums.items() if seconds > 0]
    rest = total - sum(seconds for _, seconds in parts)
    if not parts or rest < -0.05 * total:
        return [("", total)]
    return [*parts, ("", max(rest, 0.0))]
