"""The report's figures: each one question, one picture and one sentence on what to look for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from lmsmith.core.files import read_json
from lmsmith.core.metrics import read_metrics
from lmsmith.report import numbers
from lmsmith.report.metrics import stage_tables
from lmsmith.report.records import Row, RunRecord, as_number, read_rows
from lmsmith.report.series import Series, pick, smooth, thin
from lmsmith.report.svg import COLOURS, SMALL, WIDE, canvas, themed_svg
from lmsmith.report.words import STAGE_WORDS


@dataclass(frozen=True)
class ReportFigure:
    """A picture with the sentence that says what to look for in it."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class FigureGroup:
    """Figures that belong together under one heading; ``small`` ones stand three in a row."""

    title: str
    figures: tuple[ReportFigure, ...]
    small: bool = False


def draw_figures(run: RunRecord) -> tuple[FigureGroup, ...]:
    """Every figure that the run has numbers for, in the reading order of the page."""
    groups = (
        FigureGroup("Learning language", _some(draw_loss(run, "pretrain"), draw_loss(run, "sft"))),
        FigureGroup(
            "Learning what is preferred",
            _some(
                draw_ranking_training(run, "reward"),
                draw_reliability(run, "reward"),
                draw_ranking_training(run, "judge"),
                draw_reliability(run, "judge"),
            ),
        ),
        FigureGroup("PPO, iteration by iteration", draw_ppo_curves(run), small=True),
        FigureGroup("What PPO gained", _some(draw_win_rate(run), draw_frontier(run))),
    )
    return tuple(group for group in groups if group.figures)


def draw_loss(run: RunRecord, stage: str) -> ReportFigure | None:
    """Bits per byte in training and on the validation split, over tokens (steps if not logged)."""
    rows = _metrics_rows(run, stage)
    over = "tokens" if any("tokens" in row for row in rows) else "step"
    train, validation = (
        pick(rows, "bits_per_byte", over),
        pick(rows, "validation/bits_per_byte", over),
    )
    if not train and not validation:
        return None
    with canvas(WIDE) as (figure, (axes,)):
        _noisy_line(axes, train, COLOURS[stage], "training")
        _marked_line(axes, validation, "validation")
        cut = _limit_to_the_learning(axes, train, validation)
        _label(axes, "tokens seen" if over == "tokens" else "step", "bits per byte")
        _legend(axes)
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


def draw_ranking_training(run: RunRecord, stage: str) -> ReportFigure | None:
    """Accuracy and loss of a reward model in training, side by side."""
    rows = _metrics_rows(run, stage)
    accuracy, validation = pick(rows, "accuracy"), pick(rows, "validation/accuracy")
    loss, validation_loss = pick(rows, "loss"), pick(rows, "validation/loss")
    if not (accuracy or validation or loss):
        return None
    with canvas(WIDE, panels=2) as (figure, (left, right)):
        _noisy_line(left, accuracy, COLOURS[stage], "training")
        _marked_line(left, validation, "validation")
        left.axhline(0.5, color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 2)))
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _label(left, "step", "pairs ordered right")
        _legend(left)
        _noisy_line(right, loss, COLOURS[stage], "training")
        _marked_line(right, validation_loss, "validation")
        _label(right, "step", "ranking loss, nats")
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


def draw_reliability(run: RunRecord, stage: str) -> ReportFigure | None:
    """Stated against observed frequency that one reply beats another (Guo et al. 2017)."""
    bins = _calibration(run).get(stage)
    if not bins:
        return None
    predicted, observed, counts = zip(*bins, strict=True)
    with canvas(WIDE) as (figure, (axes,)):
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 2)))
        axes.plot(predicted, observed, color=COLOURS[stage], linewidth=1.2)
        axes.scatter(
            predicted,
            observed,
            s=[10 + 70 * count / max(counts) for count in counts],
            color=COLOURS[stage],
            edgecolors=COLOURS["paper"],
            linewidths=0.8,
            zorder=3,
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("how sure the model says it is that a reply wins")
        axes.set_ylabel("how often it wins")
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


@dataclass(frozen=True)
class PpoCurve:
    """One small chart: metrics drawn together, its unit and what to look for."""

    name: str
    title: str
    lines: tuple[tuple[str, str, str], ...]  # (metric, role of its colour, label)
    caption: str
    share: bool = False


PPO_CURVES = (
    PpoCurve(
        "ppo-reward",
        "Reward",
        (
            ("objective/scores", "ppo", "score"),
            ("objective/rlhf_reward", "muted", "after KL penalty"),
        ),
        "The score should rise; the gap to the grey line is what moving away from SFT costs.",
    ),
    PpoCurve(
        "ppo-kl",
        "KL from SFT",
        (("objective/kl", "ppo", "nats per reply"),),
        "A slow rise that levels off is healthy; negative, or ever steeper, is not.",
    ),
    PpoCurve(
        "ppo-entropy",
        "Entropy",
        (("policy/entropy_avg", "ppo", "nats per token"),),
        "It may sink a little; a fall towards 0 means that every reply becomes the same.",
    ),
    PpoCurve(
        "ppo-clip-fraction",
        "Clip fraction",
        (
            ("policy/clipfrac_avg", "ppo", "policy"),
            ("val/clipfrac_avg", "muted", "value model"),
        ),
        "A few per cent is usual; above 30 % the steps are too big.",
        share=True,
    ),
    PpoCurve(
        "ppo-response-length",
        "Response length",
        (("objective/response_tokens", "ppo", "tokens per reply"),),
        "Steady is good; a drift up or down often means that length is being rewarded.",
    ),
    PpoCurve(
        "ppo-value-loss",
        "Value loss",
        (("loss/value_avg", "ppo", "squared error"),),
        "It should fall as the value model learns to foresee the reward.",
    ),
)


def draw_ppo_curves(run: RunRecord) -> tuple[ReportFigure, ...]:
    """Reward, KL, entropy, clip fraction, response length and value loss over iterations."""
    rows = _metrics_rows(run, "ppo")
    return _some(*(_draw_ppo_curve(run, curve, rows) for curve in PPO_CURVES))


def _draw_ppo_curve(
    run: RunRecord, curve: PpoCurve, rows: Sequence[dict[str, Any]]
) -> ReportFigure | None:
    if curve.name == "ppo-entropy" and not pick(rows, "policy/entropy_avg"):
        curve = PpoCurve(
            curve.name,
            curve.title,
            (("objective/entropy", "ppo", "nats per reply"),),
            curve.caption,
        )
    drawn = [(pick(rows, metric), role, label) for metric, role, label in curve.lines]
    if not any(series for series, _, _ in drawn):
        return None
    with canvas(SMALL) as (figure, (axes,)):
        for series, role, label in drawn:
            _noisy_line(axes, series, COLOURS[role], label, smoothing=0.2)
        if curve.name == "ppo-kl":
            target = as_number(run.stages["ppo"].settings.get("kl_target"))
            if target is not None and run.stages["ppo"].settings.get("kl_control") != "fixed":
                axes.axhline(target, color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 2)))
        if curve.share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _label(axes, "iteration", "")
        _legend(axes)
        return ReportFigure(
            curve.name,
            curve.title,
            curve.caption,
            themed_svg(
                figure, curve.name, f"Line chart of {curve.title.lower()} over PPO iterations."
            ),
        )


def draw_win_rate(run: RunRecord) -> ReportFigure | None:
    """PPO's win rate over SFT by the judge, raw and length-controlled, with 95 % intervals."""
    measured = stage_tables(run).get("ppo", {})
    bars = [
        (label, rate, measured.get(f"{key}_low"), measured.get(f"{key}_high"))
        for label, key in (
            ("as written", "win_rate"),
            ("at equal length", "win_rate_length_controlled"),
        )
        if (rate := measured.get(key)) is not None
    ]
    if not bars:
        return None
    with canvas(WIDE) as (figure, (axes,)):
        for place, (_, rate, low, high) in enumerate(bars):
            axes.barh(place, rate, height=0.42, color=COLOURS["ppo"], alpha=0.85)
            axes.barh(place, 1 - rate, left=rate, height=0.42, color=COLOURS["sft"], alpha=0.35)
            axes.text(0.015, place, "PPO", va="center", color=COLOURS["paper"])
            axes.text(0.985, place, "SFT", va="center", ha="right")
            if low is not None and high is not None:
                axes.plot(
                    [low, high],
                    [place, place],
                    color=COLOURS["ink"],
                    linewidth=1.6,
                    marker="|",
                    markersize=9,
                    markeredgewidth=1.6,
                )
            interval = numbers.percent_interval(low, high)
            words = numbers.percent(rate) + (f", 95 % interval {interval}" if interval else "")
            axes.text(0, place - 0.29, words, va="bottom")
            axes.vlines(
                0.5, place - 0.29, place + 0.29, color=COLOURS["ink"], linestyle=(0, (2, 2))
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(len(bars) - 0.55, -0.65)
        axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=False)
        axes.set_xlabel("prompts for which the judge prefers PPO's reply to SFT's")
        return ReportFigure(
            "win-rate",
            "PPO against SFT, by the judge",
            "The black interval should lie wholly to the right of the dotted 50 %; the two bars "
            "should not differ much, or PPO won by length.",
            themed_svg(figure, "win-rate", "Bar chart of PPO's win rate with 95 % intervals."),
        )


def draw_frontier(run: RunRecord) -> ReportFigure | None:
    """Reward against KL, by the reward model and by the judge (Gao, Schulman, Hilton 2022)."""
    rows = sorted(
        read_rows(run.folder / "evaluate" / "frontier.jsonl", growing=True),
        key=lambda row: as_number(row.get("step")) or 0.0,
    )
    reward, judge = pick(rows, "reward", "kl"), pick(rows, "judge", "kl")
    if not reward:
        return None
    panels = [(reward, "ppo", "reward model's score")]
    if judge:
        panels.append((judge, "judge", "judge's score"))
    with canvas(WIDE, panels=len(panels)) as (figure, all_axes):
        for axes, (series, role, label) in zip(all_axes, panels, strict=True):
            axes.plot(series.x, series.y, color=COLOURS[role], marker="o", markersize=4)
            _end_label(axes, rows, series)
            _label(axes, "KL from SFT, nats per reply", "")
            axes.margins(x=0.08, y=0.18)
            axes.set_title(label, fontsize=8.5, loc="left", color=COLOURS["ink"])
        return ReportFigure(
            "frontier",
            "Reward against KL",
            "Both should rise together to the right; the judge's curve turning down is the point "
            "where PPO began to exploit the reward model.",
            themed_svg(figure, "frontier", "Line charts of reward and judge's score against KL."),
        )


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
        axes.set_yticks(range(len(stages)), [_title(stage.name) for stage in stages])
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
    rows = _metrics_rows(run, stage)
    parts = [
        (name, sum(pick(rows, f"seconds/{name}").y)) for name in ("rollout", "score", "update")
    ]
    parts = [(name, seconds) for name, seconds in parts if seconds > 0]
    known = sum(seconds for _, seconds in parts)
    if not parts or known > 1.05 * total:
        return [("", total)]
    return [*parts, ("", max(total - known, 0.0))]


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


_ROUND_STEPS = [1, 2, 2.5, 5, 10]


def _metrics_rows(run: RunRecord, stage: str) -> list[Row]:
    path = run.folder / stage / "metrics.jsonl"
    return read_metrics(path) if path.is_file() else []


def _noisy_line(
    axes: Axes, series: Series, colour: str, label: str, *, smoothing: float = 0.05
) -> None:
    """The raw values faint, their running mean strong."""
    if not series:
        return
    thinned, mean = thin(series), thin(smooth(series, smoothing))
    axes.plot(thinned.x, thinned.y, color=colour, linewidth=0.9, alpha=0.3)
    marker = "o" if len(series) == 1 else None
    axes.plot(mean.x, mean.y, color=colour, label=label, marker=marker)


def _marked_line(axes: Axes, series: Series, label: str) -> None:
    if series:
        thinned = thin(series, 60)
        axes.plot(
            thinned.x,
            thinned.y,
            color=COLOURS["ink"],
            linewidth=1.1,
            marker="o",
            markersize=3.4,
            markeredgecolor=COLOURS["paper"],
            markeredgewidth=0.6,
            label=label,
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


def _end_label(axes: Axes, rows: Sequence[dict[str, Any]], series: Series) -> None:
    """Name the first and the last step beside their points."""
    steps = [as_number(row.get("step")) for row in rows]
    for index in {0, len(series) - 1}:
        step = steps[index] if index < len(steps) else None
        if step is not None:
            axes.annotate(
                f"step {step:.0f}",
                (series.x[index], series.y[index]),
                xytext=(0, -11 if index == 0 else 6),
                textcoords="offset points",
                ha="left" if index == 0 else "right",
                fontsize=7.5,
                color=COLOURS["muted"],
            )


def _label(axes: Axes, below: str, beside: str) -> None:
    axes.set_xlabel(below)
    if beside:
        axes.set_ylabel(beside)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=_ROUND_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_count))
    axes.margins(x=0.02)


def _short_count(value: float, _: object = None) -> str:
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=len(handles),
            borderaxespad=0.1,
            handlelength=1.3,
            columnspacing=1.2,
        )


def _title(stage: str) -> str:
    return STAGE_WORDS[stage].title if stage in STAGE_WORDS else stage


def _some(*figures: ReportFigure | None) -> tuple[ReportFigure, ...]:
    return tuple(figure for figure in figures if figure is not None)
