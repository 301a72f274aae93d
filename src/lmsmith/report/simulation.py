"""The page of ``lmsmith simulate``: gold reward by round, and the reward model against gold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from lmsmith.core.version import VERSION
from lmsmith.report import numbers
from lmsmith.report.drawing import COLOURS, REFERENCE, WIDE, canvas, legend_above, themed_svg
from lmsmith.report.run.page import write_page

PAGE = "simulation.html"


def build_simulation_page(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write ``simulation.html`` into a folder, whole or not at all, and return its path."""
    context = {
        "version": VERSION,
        "plan": record["simulation"],
        "seeds": record["seeds"],
        "sigma": ", ".join(numbers.number(each) for each in record["labelers"]["sigma"]),
        "findings": record["findings"],
        "figures": [_draw_gold(record), _draw_parting(record)],
        "start": numbers.fixed(record["start"]["gold_reward"], 3),
        "start_tokens": numbers.fixed(record["start"]["tokens"], 1),
        "rows": [_row(each) for each in record["rounds"]],
        "seconds": sum(each["seconds"] for each in record["rounds"]),
        "settings": [
            (f"{stage}.{name}", value)
            for stage, values in record["recipe"].items()
            if isinstance(values, dict)
            for name, value in values.items()
            if not isinstance(value, dict) and value not in ("", [])
        ],
    }
    return write_page(folder, "simulation.html.j2", context, PAGE)


def _row(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """A round's cells, each a figure and its interval; the head is in the template."""
    win_rate, ends = "\u2013", ""
    if row["win_rate"] is not None:
        ends = numbers.percent_interval(row["win_rate_low"], row["win_rate_high"])
        win_rate = numbers.percent(row["win_rate"])
    rise = row["gold_reward_rise_low"], row["gold_reward_rise_high"]
    plain = [
        f"{row['votes']:,}",
        f"{row['judgements']:,}",
        numbers.percent(row["agreement"]),
        numbers.fixed(row["kl"], 2),
        numbers.fixed(row["tokens"], 1),
        numbers.signed(row["reward"], 3) if row["reward"] is not None else "\u2013",
        row["verdict"],
        numbers.duration(row["seconds"]),
    ]
    return (
        (str(row["round"]), ""),
        (numbers.fixed(row["gold_reward"], 3), ""),
        (numbers.signed(row["gold_reward_rise"], 3), numbers.signed_interval(*rise, 3)),
        (win_rate, ends),
        *((each, "") for each in plain),
    )


def _draw_gold(record: Mapping[str, Any]) -> str:
    """Gold reward of the promoted version above the start's, by round."""
    rows = record["rounds"]
    with canvas() as (figure, (axes,)):
        for place, each in enumerate(record["by_seed"]):
            values = [found["gold"] - each[0]["gold"] for found in each]
            label = "each seed" if not place else None
            axes.plot(
                range(len(values)), values, color=COLOURS["muted"], linewidth=0.8, label=label
            )
        middle = [0.0, *(row["gold_reward_from_start"] for row in rows)]
        low = [0.0, *(row["gold_reward_from_start_low"] for row in rows)]
        high = [0.0, *(row["gold_reward_from_start_high"] for row in rows)]
        axes.fill_between(range(len(middle)), low, high, color=COLOURS["ppo"], alpha=0.15)
        axes.plot(range(len(middle)), middle, color=COLOURS["ppo"], marker="o", label="mean")
        axes.axhline(0, **REFERENCE)
        axes.set(xlabel="round", ylabel="gold reward above the start")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(axes)
        return themed_svg(figure, "gold", "Gold reward of the promoted version by round.")


def _draw_parting(record: Mapping[str, Any]) -> str:
    """Each candidate's gain by the round's reward model, and by gold."""
    rows = [row for row in record["rounds"] if row["reward"] is not None]
    with canvas(WIDE) as (figure, (axes,)):
        parts = (
            ("reward", "reward", "by the reward model"),
            ("candidate_gold_gain", "ppo", "by gold"),
        )
        for place, (name, colour, label) in enumerate(parts):
            places = [row["round"] + 0.08 * (2 * place - 1) for row in rows]
            scales = [row[f"{name}_deviation"] or 1.0 for row in rows]
            values, low, high = (
                [row[f"{name}{end}"] / scale for row, scale in zip(rows, scales, strict=True)]
                for end in ("", "_low", "_high")
            )
            # Rounding may put an end of an interval of no width beyond its value.
            ends = np.maximum(0.0, [np.subtract(values, low), np.subtract(high, values)])
            axes.errorbar(
                places, values, yerr=ends, fmt="o", markersize=4.5, color=COLOURS[colour],
                label=label,
            )  # fmt: skip
        axes.axhline(0, **REFERENCE)
        axes.set(xlabel="round", ylabel="gain, in standard deviations")
        axes.set_xticks([row["round"] for row in rows])
        axes.set_xlim(0.5, len(record["rounds"]) + 0.5)
        legend_above(axes)
        return themed_svg(figure, "parting", "Gains of the candidates by reward model and by gold.")
