"""Several models on the same tasks: values in a table and a drawing, changes, and win rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lmsmith.comparison.instructions import Replies
from lmsmith.comparison.run import ModelPair, TaskComparison, summary
from lmsmith.comparison.win_rate import JudgedRow, PeoplesWork, Versus
from lmsmith.core.format import UNKNOWN
from lmsmith.evaluation.measures import measure_of
from lmsmith.evaluation.run import ModelEvaluation
from lmsmith.report import numbers
from lmsmith.report.drawing import COLOURS, canvas, legend_marker, share_by_task, themed_svg
from lmsmith.report.evaluation.shown import (
    share_with_interval,
    short_names,
    shown_difference,
    shown_interval,
    shown_value,
)

MODEL_ROLES = ("pretrain", "sft", "ppo", "reward", "human", "judge")
"""Colours of models, in their order; the first again after the last."""

MOST_DRAWN = 24
"""Tasks in the drawing; the table has all."""

SHOWN_REPLIES = 24
"""Instructions on the page; all are in the JSONL file."""


def pair_section(pair: ModelPair) -> dict[str, Any]:
    """The section of two models: what changed between them, and a win rate if there is one."""
    return {
        "models": pair,
        "columns": short_names([pair.before, pair.after]),
        "comparisons": [_comparison(each) for each in pair.comparisons if not each.is_unchanged],
        "summary": summary(pair.comparisons) if pair.comparisons else "",
        "versus": versus_section(pair.versus) if pair.versus is not None else None,
    }


def _comparison(each: TaskComparison) -> dict[str, str]:
    difference, interval = shown_difference(each.measure, each.difference)
    share = measure_of(each.measure).is_share
    return {
        "task": each.task,
        "measure": measure_of(each.measure).name,
        "a": shown_value(each.measure, each.value_a),
        "b": shown_value(each.measure, each.value_b),
        "difference": difference,
        "interval": interval,
        "verdict": each.verdict,
        "changed": f"{len(each.gained)} won, {len(each.lost)} lost" if share else "",
    }


def values_of(models: Sequence[ModelEvaluation]) -> list[dict[str, Any]]:
    """A row a task: the headline measure, and each model's value with its interval."""
    by_model = [{result.name: result.headline for result in each.results} for each in models]
    rows = []
    for result in models[-1].results:
        measure, cells = result.task.measure, []
        for headlines in by_model:
            found = headlines.get(result.name)
            shown = (UNKNOWN, "")
            if found is not None:
                shown = (shown_value(measure, found.value), shown_interval(measure, found))
            cells.append(shown)
        rows.append({"task": result.name, "measure": measure_of(measure).name, "cells": cells})
    return rows


def side_by_side(models: Sequence[ModelEvaluation]) -> dict[str, Any] | None:
    """Table and drawing of three models or more; two have their difference alone."""
    if len(models) < 3 or not models[-1].results:
        return None
    return {
        "models": short_names([each.name for each in models]),
        "rows": values_of(models),
        "svg": draw_side_by_side(models),
    }


def draw_side_by_side(models: Sequence[ModelEvaluation]) -> str:
    """Each task's share by model, a dot with its interval; empty if no task has a share."""
    shown = [each for each in models[-1].results if measure_of(each.task.measure).is_share]
    shown = shown[:MOST_DRAWN]
    if not shown:
        return ""
    names = short_names([each.name for each in models])
    height = 0.9 + len(shown) * (0.12 + 0.11 * len(models))
    with canvas((7.6, height)) as (figure, (axes,)):
        for place, each in enumerate(models):
            colour = COLOURS[MODEL_ROLES[place % len(MODEL_ROLES)]]
            by_name = {result.name: result.headline for result in each.results}
            offset = (place - (len(models) - 1) / 2) * 0.7 / len(models)
            for row, result in enumerate(shown):
                found, at = by_name.get(result.name), row + offset
                if found is not None:
                    ends = [found.low, found.high]
                    axes.plot(ends, [at, at], color=colour, linewidth=1.2, alpha=0.6)
                    axes.scatter([found.value], [at], s=16, color=colour, zorder=3)
            legend_marker(axes, colour, names[place])
        share_by_task(axes, [each.name for each in shown])
        figure.legend(loc="outside upper left", ncols=3)
        said = f"Each task's value by model: {', '.join(names)}."
        return themed_svg(figure, "side-by-side", said)


def versus_sentences(versus: Versus) -> list[str]:
    """A win rate in words, a sentence a finding, and how the replies were drawn."""
    model, other = versus.a.model, versus.b.model
    said = []
    if versus.rate is None or versus.at_equal_length is None:
        said.append(f"{model} against {other}: nothing is judged yet")
    else:
        said.append(
            f"{model} beats {other} on {share_with_interval(versus.rate)} of {len(versus.rows)} "
            f"instructions by {versus.judge}'s judgement, ties counting half "
            f"({numbers.percent(versus.ties)} are ties)"
        )
        equal = share_with_interval(versus.at_equal_length)
        said.append(f"were all replies equally long: {equal}")
    if versus.people is not None:
        said += _people_sentences(versus.people)
    if versus.position_bias is not None:
        bias = versus.position_bias
        ends = numbers.signed_interval(100 * bias.low, 100 * bias.high, 1)
        said.append(
            f"the reply that the judge reads first is {numbers.signed(100 * bias.value, 1)} points "
            f"({ends}) from one half; both orders agree on {numbers.percent(versus.consistent)}"
        )
    said.append(_drawn(versus.a, versus.b))
    said.append(
        f"empty replies: {model} {versus.a.empty}, {other} {versus.b.empty} "
        f"of {len(versus.a.texts)} each"
    )
    return said


def _people_sentences(work: PeoplesWork) -> list[str]:
    people = "1 person" if work.labelers == 1 else f"{work.labelers} people"
    added = f", {work.added} pairs of them new in the queue" if work.added else ""
    said = [f"{work.judgements} judgements of {people}; {work.waiting} are still to come{added}"]
    if work.agreement is not None:
        alpha = work.alpha.value if work.alpha is not None else math.nan
        chance = "" if math.isnan(alpha) else f", Krippendorff's α {numbers.fixed(alpha, 2)}"
        said.append(
            f"two of them agree on {share_with_interval(work.agreement)} of the {work.several} "
            f"pairs that several judged, a tie against a preference counting half{chance}"
        )
    return said


def _drawn(a: Replies, b: Replies) -> str:
    """Sampling settings of both models."""
    tokens = f"at most {a.spec.max_new_tokens} tokens"
    if a.spec.search != "sample":
        return f"replies: the likeliest token each time (--greedy), {tokens}"
    way, other = (
        f"temperature {each.spec.temperature:g}, top-p {each.spec.top_p:g}" for each in (a, b)
    )
    ways = way if way == other else f"{a.model} {way}; {b.model} {other}"
    return f"replies: drawn as lmsmith chat does ({ways}), seed {a.seed}, {tokens}"


def versus_section(versus: Versus) -> dict[str, Any]:
    """A win rate as the page shows it: its sentences, and the first replies."""
    return {
        "found": versus,
        "sentences": versus_sentences(versus),
        "cards": [_card(row) for row in versus.rows[:SHOWN_REPLIES]],
    }


def _card(row: JudgedRow) -> dict[str, Any]:
    won = row.won
    scores = (row.score_a, row.score_b)
    notes = ["" if score is None else numbers.number(score) for score in scores]
    if row.judgements:
        notes = [f"{numbers.percent(share)} of {row.judgements}" for share in (won, 1 - won)]
    return {
        "id": row.id,
        "prompt": row.prompt,
        "verdict": "won" if won > 0.5 else "lost" if won < 0.5 else "tie",
        "notes": [f": {note}" if note else "" for note in notes],
        "replies": [row.a or "(nothing)", row.b or "(nothing)"],
    }
