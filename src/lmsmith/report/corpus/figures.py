"""The histogram of the classifier's scores, and what its draw kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lmsmith.core.format import UNKNOWN
from lmsmith.corpus.build.quality_classifier import BINS, keep_probability
from lmsmith.report import numbers
from lmsmith.report.corpus.flow import counted
from lmsmith.report.drawing import COLOURS, REFERENCE, ReportFigure, canvas, legend_above

GPT3_SHARE = 570 / 45_000
"""Brown et al. 2020, section 2.2: 45 TB of Common Crawl became 570 GB."""


@dataclass(frozen=True)
class Scores:
    """What the classifier did.

    Attributes:
        raw, raw_kept: documents of sources that are not curated, before and after the draw.
        left: share of the bytes read from raw sources that all steps together left.
    """

    shape: float
    auc: float
    examples: int
    measured: int
    raw: int
    raw_kept: int
    left: float | None
    figures: tuple[ReportFigure, ...]

    @property
    def share(self) -> float | None:
        """Share of raw documents that the draw kept."""
        return self.raw_kept / self.raw if self.raw else None


def scores(record: Mapping[str, Any]) -> Scores | None:
    """The classifier's part of the page; None where it did not run."""
    figures = record.get("figures", {}).get("quality_classifier")
    if figures is None or "quality" not in record["steps"]:
        return None
    sources = record["recipe"]["sources"]
    curated = {name for name, about in sources.items() if about["curated"]}
    before, after = (_bins(record, prefix, curated) for prefix in ("score.", "score_kept."))
    shape = float(record["recipe"]["quality"]["classifier"]["pareto"])
    drawn = [_draw_scores(before, after)]
    if before[0].sum():
        drawn.append(_draw_share(before[0], after[0], shape))
    steps = record["steps"]
    read = sum(c.get("bytes_out", 0) for s, c in steps["read"].items() if s not in curated)
    left = sum(c["bytes"] for s, c in record["sources"].items() if s not in curated)
    return Scores(
        shape,
        figures["auc"],
        figures["examples"],
        figures["measured"],
        int(before[0].sum()),
        int(after[0].sum()),
        left / read if read else None,
        tuple(drawn),
    )


def _bins(record: Mapping[str, Any], prefix: str, curated: set[str]) -> list[np.ndarray[Any, Any]]:
    """Documents by bin of the score: of raw sources, and of curated ones."""
    found = [np.zeros(BINS), np.zeros(BINS)]
    for bin, sources in counted(record, "quality", prefix).items():
        for source, count in sources.items():
            found[source in curated][int(bin)] += count
    return found


def _draw_scores(
    before: list[np.ndarray[Any, Any]], after: list[np.ndarray[Any, Any]]
) -> ReportFigure:
    places = (np.arange(BINS) + 0.5) / BINS
    with canvas() as (figure, (axes,)):
        width = 0.92 / BINS
        axes.bar(places, before[0], width, color=COLOURS["judge"], alpha=0.35, label="raw")
        axes.bar(places, after[0], width, color=COLOURS["sft"], label="raw, kept")
        if before[1].any():
            axes.step(
                np.arange(BINS + 1) / BINS,
                np.append(before[1], before[1][-1]),
                where="post",
                color=COLOURS["pretrain"],
                label="curated",
            )
        axes.set(xlabel="score", ylabel="documents", xlim=(0, 1))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        legend_above(axes)
        return ReportFigure.of(
            figure,
            "scores",
            "Scores of raw and curated documents",
            "The further apart the two are, the better the classifier tells them from each other. "
            "Curated documents are kept whatever their score.",
            "Histogram of the classifier's scores",
        )


def _draw_share(
    before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], shape: float
) -> ReportFigure:
    places = (np.arange(BINS) + 0.5) / BINS
    known = before > 0
    line = np.linspace(0, 1, 101)
    with canvas() as (figure, (axes,)):
        axes.plot(line, [keep_probability(s, shape) for s in line], **REFERENCE)
        axes.plot(
            places[known],
            after[known] / before[known],
            color=COLOURS["sft"],
            marker="o",
            markersize=3.5,
            linewidth=0,
        )
        axes.set(xlabel="score", ylabel="share kept", xlim=(0, 1), ylim=(-0.03, 1.03))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        return ReportFigure.of(
            figure,
            "kept",
            "Share kept by score",
            "Points: share of raw documents that the draw kept. Line: (2 − score) to the power "
            f"−{shape:g}. "
            "Points of few documents lie off the line by chance.",
            "Share of documents kept against their score",
        )


def share_words(share: float | None) -> str:
    """A share with enough digits to compare small ones."""
    if share is None:
        return UNKNOWN
    return numbers.percent(share, 1 if share >= 0.1 else 2)
