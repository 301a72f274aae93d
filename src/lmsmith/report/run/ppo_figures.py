"""PPO in pictures: its curves, its win rate over SFT, and reward against KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lmsmith.core.files import growing_rows
from lmsmith.report import drawing, numbers
from lmsmith.report.drawing import COLOURS, SMALL, ReportFigure, Series, canvas, pick
from lmsmith.report.numbers import as_number
from lmsmith.report.run.metrics import stage_tables
from lmsmith.report.run.records import Row, RunRecord
from lmsmith.runs.metrics_log import read_metrics


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
        "A slow rise that levels off is healthy; below 0 or ever steeper is not (dotted: bounds).",
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
        (("policy/clipfrac_avg", "ppo", "policy"), ("val/clipfrac_avg", "muted", "value model")),
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


def draw_ppo_curves(run: RunRecord) -> list[ReportFigure | None]:
    """Reward, KL, entropy, clip fraction, response length and value loss over iterations."""
    rows = read_metrics(run.folder / "ppo" / "metrics.jsonl")
    return [_draw_ppo_curve(run, curve, rows) for curve in PPO_CURVES]


def _draw_ppo_curve(
    run: RunRecord, curve: PpoCurve, rows: Sequence[dict[str, float]]
) -> ReportFigure | None:
    if curve.name == "ppo-entropy" and not pick(rows, "policy/entropy_avg"):
        curve = replace(curve, lines=(("objective/entropy", "ppo", "nats per reply"),))
    drawn = [(pick(rows, metric), role, label) for metric, role, label in curve.lines]
    if not any(series for series, _, _ in drawn):
        return None
    with canvas(SMALL) as (figure, (axes,)):
        for series, role, label in drawn:
            drawing.noisy_line(axes, series, COLOURS[role], label, smoothing=0.2)
        if curve.name == "ppo-kl":
            for bound in _kl_bounds(run.stages["ppo"].settings, max(drawn[0][0].y)):
                axes.axhline(bound, **drawing.REFERENCE)
        if curve.share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        drawing.label_axes(axes, "iteration")
        drawing.legend_above(axes)
        label = f"Line chart of {curve.title.lower()} over PPO iterations."
        return ReportFigure.of(figure, curve.name, curve.title, curve.caption, label)


def _kl_bounds(settings: Row, highest: float) -> list[float]:
    """Bounds of the KL that the curve comes near."""
    keys = {"adaptive": ["kl_target"], "band": ["kl_low", "kl_high"]}
    named = [*keys.get(str(settings.get("kl_control")), []), "kl_budget"]
    bounds = [as_number(settings.get(key)) for key in named]
    return [bound for bound in bounds if bound and bound < 1.5 * highest]


def draw_win_rate(run: RunRecord) -> ReportFigure | None:
    """PPO's win rate over SFT by the judge, raw and length-controlled, with 95 % intervals."""
    measured = stage_tables(run).get("ppo", {})
    rates = {"as written": "win_rate", "at equal length": "win_rate_length_controlled"}
    bars = [
        (label, rate, measured.get(f"{key}_low"), measured.get(f"{key}_high"))
        for label, key in rates.items()
        if (rate := measured.get(key)) is not None
    ]
    if not bars:
        return None
    ends: dict[str, Any] = {"marker": "|", "markersize": 9, "markeredgewidth": 1.6}
    ink, paper = COLOURS["ink"], COLOURS["paper"]
    with canvas() as (figure, (axes,)):
        for place, (_, rate, low, high) in enumerate(bars):
            axes.barh(place, rate, height=0.42, color=COLOURS["ppo"], alpha=0.85)
            axes.barh(place, 1 - rate, left=rate, height=0.42, color=COLOURS["sft"], alpha=0.35)
            axes.text(0.015, place, "PPO", va="center", color=paper)
            axes.text(0.985, place, "SFT", va="center", ha="right")
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=ink, **ends)
            interval = numbers.percent_interval(low, high)
            words = numbers.percent(rate) + (f", 95 % interval {interval}" if interval else "")
            axes.text(0, place - 0.29, words, va="bottom")
            axes.vlines(0.5, place - 0.29, place + 0.29, color=ink, linestyle=(0, (2, 2)))
        axes.set(xlim=(0, 1), ylim=(len(bars) - 0.55, -0.65))
        axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=False)
        axes.set_xlabel("prompts for which the judge prefers PPO's reply to SFT's")
        return ReportFigure.of(
            figure,
            "win-rate",
            "PPO against SFT, by the judge",
            "The black interval should lie wholly to the right of the dotted 50 %; the two bars "
            "should not differ much, or PPO won by length.",
            "Bar chart of PPO's win rate with 95 % intervals.",
        )


def draw_frontier(run: RunRecord) -> ReportFigure | None:
    """Reward against KL, by the reward model and by the judge (Gao, Schulman, Hilton 2022)."""
    rows = growing_rows(run.folder / "evaluate" / "frontier.jsonl")
    rows.sort(key=lambda row: as_number(row.get("step")) or 0.0)
    reward, judge = pick(rows, "reward", "kl"), pick(rows, "judge", "kl")
    if not reward:
        return None
    panels = [(reward, "ppo", "reward model's score")]
    if judge:
        panels.append((judge, "judge", "judge's score"))
    with canvas(panels=len(panels)) as (figure, all_axes):
        for axes, (series, role, label) in zip(all_axes, panels, strict=True):
            axes.plot(series.x, series.y, color=COLOURS[role], marker="o", markersize=4)
            _name_ends(axes, rows, series)
            drawing.label_axes(axes, "KL from SFT, nats per reply")
            axes.margins(x=0.08, y=0.18)
            axes.set_title(label, fontsize=8.5, loc="left", color=COLOURS["ink"])
        return ReportFigure.of(
            figure,
            "frontier",
            "Reward against KL",
            "Both should rise together to the right; the judge's curve turning down is the point "
            "where PPO began to exploit the reward model.",
            "Line charts of reward and judge's score against KL.",
        )


def _name_ends(axes: Axes, rows: Sequence[Row], series: Series) -> None:
    """Name the first and the last step beside their points."""
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5}
    for index in {0, len(series) - 1}:
        step, point = as_number(rows[index].get("step")), (series.x[index], series.y[index])
        side, rise = ("left", -11) if index == 0 else ("right", 6)
        if step is not None:
            style |= {"xytext": (0, rise), "ha": side, "color": COLOURS["muted"]}
            axes.annotate(f"step {step:.0f}", point, **style)
