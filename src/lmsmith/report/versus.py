"""A win rate in words, and the replies it is of."""

from __future__ import annotations

from typing import Any

from lmsmith.evaluation.versus import Versus
from lmsmith.report import numbers

SHOWN = 24
"""Instructions on the page; all are in win-rate.jsonl."""


def versus_sentences(versus: Versus, model: str, other: str) -> list[str]:
    """What was found, a sentence each."""

    def both(interval: Any) -> str:
        ends = numbers.percent_interval(interval.low, interval.high)
        return f"{numbers.percent(interval.value)} ({ends})"

    said = [
        f"{model} beats {other} on {both(versus.rate)} of {len(versus.rows)} instructions by "
        f"{versus.judge}'s judgement, ties counting half ({numbers.percent(versus.ties)} are ties)",
        f"were all replies equally long: {both(versus.at_equal_length)}",
    ]
    if versus.position_bias is not None:
        bias = versus.position_bias
        ends = f"{numbers.signed(100 * bias.low, 1)} to {numbers.signed(100 * bias.high, 1)}"
        said.append(
            f"the reply that the judge reads first is {numbers.signed(100 * bias.value, 1)} points "
            f"({ends}) from one half; both orders agree on {numbers.percent(versus.consistent)}"
        )
    return said


def versus_section(versus: Versus, model: str, other: str) -> dict[str, Any]:
    """What the page shows."""
    return {
        "sentences": versus_sentences(versus, model, other),
        "cards": [
            {
                "id": row["id"],
                "prompt": row["prompt"],
                "verdict": {1.0: "won", 0.0: "lost"}.get(row["won"], "tie"),
                "score_a": numbers.number(row["score_a"]),
                "score_b": numbers.number(row["score_b"]),
                "a": row["a"] or "(nothing)",
                "b": row["b"] or "(nothing)",
            }
            for row in versus.rows[:SHOWN]
        ],
        "count": len(versus.rows),
    }
