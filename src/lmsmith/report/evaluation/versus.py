"""A win rate in words, and the replies it is of."""

from __future__ import annotations

import math
from typing import Any

from lmsmith.comparison.instructions import Replies
from lmsmith.comparison.win_rate import JudgedRow, PeoplesWork, Versus
from lmsmith.report import numbers
from lmsmith.statistics.intervals import Interval

SHOWN = 24
"""Instructions on the page; all are in the JSONL file."""


def versus_sentences(versus: Versus) -> list[str]:
    """What was found, a sentence each, and how the replies were drawn."""
    model, other, people = versus.a.model, versus.b.model, versus.people
    said = []
    if versus.rate is None or versus.at_equal_length is None:
        said.append(f"{model} against {other}: nothing is judged yet")
    else:
        said.append(
            f"{model} beats {other} on {_both(versus.rate)} of {len(versus.rows)} instructions by "
            f"{versus.judge}'s judgement, ties counting half "
            f"({numbers.percent(versus.ties)} are ties)"
        )
        said.append(f"were all replies equally long: {_both(versus.at_equal_length)}")
    if people is not None:
        said += _people_sentences(people)
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


def _both(interval: Interval) -> str:
    ends = numbers.percent_interval(interval.low, interval.high)
    return f"{numbers.percent(interval.value)} ({ends})"


def _people_sentences(work: PeoplesWork) -> list[str]:
    people = "1 person" if work.labelers == 1 else f"{work.labelers} people"
    added = f", {work.added} pairs of them new in the queue" if work.added else ""
    said = [f"{work.judgements} judgements of {people}; {work.waiting} are still to come{added}"]
    if work.agreement is not None:
        alpha = work.alpha.value if work.alpha is not None else math.nan
        chance = "" if math.isnan(alpha) else f", Krippendorff's α {numbers.fixed(alpha, 2)}"
        said.append(
            f"two of them agree on {_both(work.agreement)} of the {work.several} pairs that "
            f"several judged, a tie against a preference counting half{chance}"
        )
    return said


def _drawn(a: Replies, b: Replies) -> str:
    """How both models were asked."""
    tokens = f"at most {a.spec.max_new_tokens} tokens"
    if a.spec.search != "sample":
        return f"replies: the likeliest token each time (--greedy), {tokens}"

    def of(each: Replies) -> str:
        return f"temperature {each.spec.temperature:g}, top-p {each.spec.top_p:g}"

    ways = of(a) if of(a) == of(b) else f"{a.model} {of(a)}; {b.model} {of(b)}"
    return f"replies: drawn as lmsmith chat does ({ways}), seed {a.seed}, {tokens}"


def versus_section(versus: Versus) -> dict[str, Any]:
    """What the page shows."""
    return {
        "a": versus.a.model,
        "b": versus.b.model,
        "log": versus.log,
        "sentences": versus_sentences(versus),
        "cards": [_card(row) for row in versus.rows[:SHOWN]],
        "count": len(versus.rows),
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
