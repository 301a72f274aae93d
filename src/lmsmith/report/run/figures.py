"""The report's figures: each one question, one picture and one sentence on what to look for."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lmsmith.core.files import read_json
from lmsmith.report import numbers
from lmsmith.report.drawing import (
    ReliabilityCurve,
    ReportFigure,
    draw_reliability,
    label_axes,
    legend_above,
    marked_line,
    metrics_rows,
    noisy_line,
    present,
)
from lmsmith.report.run.ppo_figures import draw_frontier, draw_ppo_curves, draw_win_rate
from lmsmith.report.run.records import RunRecord, as_number
from lmsmith.report.run.series import Series, pick, smooth
from lmsmith.report.run.words import STAGE_WORDS, stage_title
from lmsmith.report.svg import COLOURS, WIDE, canvas, themed_svg


@dataclass(frozen=True)
class FigureGroup:
    """Figures that belong together under one heading; ``small`` ones stand three in a row."""

    title: str
    figures: tuple[ReportFigure, ...]
    small: bool = False


def draw_figures(run: RunRecord) -> tuple[FigureGroup, ...]:
    """Every figure that the run has numbers for, in the reading order of the page."""
    groups = (
        FigureGroup(
            "Learning language", present(draw_loss(run, "pretrain"), draw_loss(run, "sft"))
        ),
        FigureGroup(
            "Learning what is preferred",
            present(
                draw_ranking_training(run, "reward"),
                draw_reward_reliability(run, "reward"),
                draw_ranking_training(run, "judge"),
                draw_reward_reliability(run, "judge"),
            ),
        ),
        FigureGroup("PPO, iteration by iteration", draw_ppo_curves(run), small=True),
        FigureGroup("What PPO gained", present(draw_win_rate(run), draw_frontier(run))),
    )
    return tuple(group for group in groups if group.figures)


def draw_loss(run: RunRecord, stage: str) -> ReportFigure | None:
    """Bits per byte in training and on the validation split, over tokens (steps if not logged)."""
    rows = metrics_rows(run, stage)
    batch = as_number(run.stages[stage].settings.get("batch_tokens"))
    if batch is not None:
        rows = [{**row, "tokens": row["step"] * batch} for row in rows]
    over = "tokens" if any("tokens" in row for row in rows) else "step"
    train, validation = (
        pick(rows, "bits_per_byte", over),
        pick(rows, "validation/bits_per_byte", over),
    )
    if not train and not validation:
        return None
    with canvas(WIDE) as (figure, (axes,)):
        noisy_line(axes, train, COLOURS[stage], "training")
        marked_line(axes, validation, "validation")
        cut = _limit_to_the_learning(axes, train, validation)
        label_axes(axes, "tokens seen" if over == "tokens" else "step", "bits per byte")
        legend_above(axes)
        last = f" It ends at {numbers.fixed(validation.y[-1], 3)}." if validation else ""
        return ReportFigure(
            f"{stage}-loss",
            f"{STAGE_WORDS[stage].title}: bits per byte",
            f"Both lines should fall and stay together; validation rising while training falls is "
            f"learning by heart.{last}{' The steep start is cut off.' if cut else ''}",
            themed_svg(
                figure,
                f"{stage}-loss",
                f"Line chart of bits per byte over {over}s, training and validation.",
            ),
        )


def _limit_to_the_learning(axes: Axes, train: Series, validation: Series) -> bool:
    """Cut off the first steep fall, which would press all the rest flat; True if it was cut."""
    mean = smooth(train)
    later = mean.y[len(mean.y) // 12 :]
    values = [*later, *validation.y[len(validation.y) // 12 :]]
    low, high = min([*values, *train.y]), max(values)
    room = 0.06 * (high - low) or 0.05
    everything = max([*train.y, *validation.y])
    if everything <= high + 2 * room or len(values) < 8:
        return False
    axes.set_ylim(low - room, high + room)
    return True


def draw_ranking_training(run: RunRecord, stage: str) -> ReportFigure | None:
    """Accuracy and loss of a reward model in training, side by side."""
    rows = metrics_rows(run, stage)
    accuracy, validation = pick(rows, "accuracy"), pick(rows, "validation/accuracy")
    loss, validation_loss = pick(rows, "loss"), pick(rows, "validation/loss")
    if not (accuracy or validation or loss):
        return None
    with canvas(WIDE, panels=2) as (figure, (left, right)):
        noisy_line(left, accuracy, COLOURS[stage], "training")
        marked_line(left, validation, "validation")
        left.axhline(0.5, color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 2)))
        left.yaxis.set_major_formatter(PercentFormatter(1.0))
        label_axes(left, "step", "pairs ordered right")
        legend_above(left)
        noisy_line(right, loss, COLOURS[stage], "training")
        marked_line(right, validation_loss, "validation")
        label_axes(right, "step", "ranking loss, nats")
        return ReportFigure(
            f"{stage}-training",
            f"{STAGE_WORDS[stage].title}: accuracy and loss",
            "Validation accuracy should rise above the dotted 50 % of a coin; training stops "
            "where it no longer does.",
            themed_svg(
                figure,
                f"{stage}-training",
                "Two line charts over steps: pairs ordered right, and ranking loss.",
            ),
        )


def draw_reward_reliability(run: RunRecord, stage: str) -> ReportFigure | None:
    """Stated against observed frequency that one reply beats another."""
    bins = _calibration(run).get(stage)
    if not bins:
        return None
    most = max(count for *_, count in bins)
    points = [(predicted, observed, count / most) for predicted, observed, count in bins]
    with canvas(WIDE) as (figure, (axes,)):
        draw_reliability(
            axes,
            [ReliabilityCurve("", COLOURS[stage], points)],
            "how sure the model says it is that a reply wins",
            "how often it wins",
        )
        return ReportFigure(
            f"{stage}-reliability",
            f"{STAGE_WORDS[stage].title}: does it know how sure it may be?",
            "On the dotted diagonal 70 % said is 70 % true; a curve flatter than it is too sure of "
            "itself (a larger point stands for more pairs).",
            themed_svg(
                figure,
                f"{stage}-reliability",
                "Reliability diagram: stated against observed frequency of winning.",
            ),
        )


def _calibration(run: RunRecord) -> dict[str, list[tuple[float, float, float]]]:
    """By model, bins as (predicted, observed, count); empty ones are left out."""
    path = run.folder / "evaluate" / "calibration.json"
    if not path.is_file():
        return {}
    table = read_json(path)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for stage, bins in table.items() if isinstance(table, dict) else ():
        for row in bins if isinstance(bins, list) else ():
            values = [as_number(row.get(key)) for key in ("predicted", "observed", "count")]
            predicted, observed, count = values
            if predicted is not None and observed is not None and count:
                found.setdefault(stage, []).append((predicted, observed, count))
    return found


def draw_time(run: RunRecord) -> ReportFigure | None:
    """Wall time of every stage as bars, PPO's split into rollout, scoring and update."""
    stages = [stage for stage in run.stages.values() if stage.wall_seconds]
    if not stages:
        return None
    with canvas((5.2, 0.3 + 0.25 * len(stages))) as (figure, (axes,)):
        longest = max(stage.wall_seconds or 0.0 for stage in stages)
        for place, stage in enumerate(stages):
            total, left = stage.wall_seconds or 0.0, 0.0
            colour = COLOURS.get(stage.name, COLOURS["muted"])
            for index, (label, seconds) in enumerate(_time_parts(run, stage.name, total)):
                alpha = (0.95, 0.70, 0.50, 0.30)[index]
                axes.barh(place, seconds, left=left, height=0.66, color=colour, alpha=alpha)
                if label and seconds > 0.12 * longest:
                    axes.text(
                        left + seconds / 2,
                        place,
                        label,
                        ha="center",
                        va="center",
                        color=COLOURS["paper"] if alpha > 0.6 else COLOURS["ink"],
                        fontsize=7.5,
                    )
                left += seconds
            axes.text(left + 0.008 * longest, place, numbers.duration(total), va="center")
        axes.set_yticks(range(len(stages)), [stage_title(stage.name) for stage in stages])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.2)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        return ReportFigure(
            "time",
            "Where the time went",
            "A bar a stage; a stage that took much longer than it gained above is where to save.",
            themed_svg(figure, "time", "Bar chart of the wall time of each stage."),
        )


def _time_parts(run: RunRecord, stage: str, total: float) -> list[tuple[str, float]]:
    """How ``total`` seconds of a stage divide; one unnamed part where it was not measured."""
    rows = metrics_rows(run, stage)
    parts = [
        (name, sum(pick(rows, f"seconds/{name}").y)) for name in ("rollout", "score", "update")
    ]
    parts = [(name, seconds) for name, seconds in parts if seconds > 0]
    known = sum(seconds for _, seconds in parts)
    if not parts or known > 1.05 * total:
        return [("", total)]
    return [*parts, ("", max(total - known, 0.0))]
