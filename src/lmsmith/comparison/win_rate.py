"""One model's replies against another's: who wins how often, raw and at equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import ArrayLike

from lmsmith.comparison.instructions import AT_ONCE, Instruction, Replies
from lmsmith.comparison.judges import Judge, cut_warning
from lmsmith.core.files import fingerprint
from lmsmith.core.progress import Progress
from lmsmith.evaluation.rows import ItemLog, Row
from lmsmith.statistics.fits import fit_logistic, sigmoid
from lmsmith.statistics.intervals import (
    Floats,
    Interval,
    bootstrap_ratio,
    percentile_interval,
    resample_counts,
    share_interval,
)

RIDGE = 1e-3
"""Weight of ½‖b‖² in the logistic regression: next to nothing, but it keeps b finite when one
side wins always."""

ROWS_VERSION = 1
"""Version of a judge's rows; rows of another version are made again."""


@dataclass(frozen=True)
class PeoplesWork:
    """The judgements of people in a win rate.

    Attributes:
        added: pairs that this run put into the queue.
        judgements: done.
        waiting: judgements still to come, of all pairs.
        labelers: how many people judged.
        several: pairs that two or more judged.
        agreement: of those, the share of pairs of labelers that agree; a tie against a preference
            is a half. None without any.
        alpha: Krippendorff's, ordinal; None without any.
    """

    added: int
    judgements: int
    waiting: int
    labelers: int
    several: int
    agreement: Interval | None
    alpha: Interval | None


class JudgedRow(Row, kw_only=True, omit_defaults=True):
    """An instruction, both replies and the verdict.

    Attributes:
        won: 1 where a's reply is better, 0 where b's is, 0.5 for a tie.
        score_a, score_b: the judge's scores.
        a_shown_first, a_shown_second: P(a is better), shown in either place.
        judgements: how many people judged.
    """

    prompt: str
    a: str
    b: str
    won: float
    score_a: float | None = None
    score_b: float | None = None
    a_shown_first: float | None = None
    a_shown_second: float | None = None
    judgements: int | None = None


@dataclass(frozen=True)
class Versus:
    """Model a against model b.

    Attributes:
        rate: share of instructions on which a's reply is better, ties counting ½; None before
            anything is judged.
        at_equal_length: the same, were the replies equally long.
        position_bias: P(the reply shown first) − ½, of a judge that reads both orders.
        consistent: share of instructions on which both orders prefer the same reply.
        ties: share of instructions without a winner.
        rows: of the instructions that are judged.
        log: the name of the file that holds the rows.
    """

    judge: str
    a: Replies
    b: Replies
    rate: Interval | None
    at_equal_length: Interval | None
    position_bias: Interval | None
    consistent: float | None
    ties: float | None
    rows: Sequence[JudgedRow]
    people: PeoplesWork | None = None
    log: str = ""

    def as_dict(self) -> dict[str, object]:
        """For ``--json`` and results.json."""
        found: dict[str, object] = {
            "model": self.a.model,
            "against": self.b.model,
            "judge": self.judge,
            "instructions": len(self.a.texts),
            "judged": len(self.rows),
            "win_rate": _plain(self.rate),
            "win_rate_length_controlled": _plain(self.at_equal_length),
            "position_bias": _plain(self.position_bias),
            "consistent": self.consistent,
            "ties": self.ties,
            "replies": [self.a.as_dict(), self.b.as_dict()],
        }
        if self.people is not None:
            found["people"] = asdict(self.people)
        return found


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else vars(interval)


def judge_replies(
    judge: Judge,
    instructions: Sequence[Instruction],
    a: Replies,
    b: Replies,
    log: Path,
    progress: Progress,
    seed: int = 0,
) -> Versus:
    """A judge's verdicts on two models' replies; earlier ones are not asked again.

    Args:
        log: the JSONL file of the judgements, each on the disk before the next batch is asked.
            Those of another judge, other replies or another seed of theirs are discarded.
        seed: of the intervals.
    """
    of = fingerprint(["win rate", ROWS_VERSION, judge.fingerprint, a.fingerprint, b.fingerprint])
    about = {"fingerprint": of, "judge": judge.name, "a": a.model, "b": b.model}
    kept: ItemLog[JudgedRow] = ItemLog(log, about, JudgedRow)
    triples = zip(instructions, a.texts, b.texts, strict=True)
    texts = {each.id: (one, two) for each, one, two in triples}

    def verdicts(part: Sequence[Instruction]) -> list[JudgedRow]:
        asked = [(list(each.messages), *texts[each.id]) for each in part]
        found = []
        for each, scores in zip(part, judge.compare(asked), strict=True):
            won = float(wins(scores["score_a"], scores["score_b"]))
            row = judged_row(each, *texts[each.id], won)
            found.append(structs.replace(row, **scores))
        return found

    kept.fill(instructions, verdicts, AT_ONCE, "win rate", "pairs", progress)
    if warning := cut_warning(judge):
        progress.say(warning)
    rows = [kept.rows[each.id] for each in instructions]
    return replace(summarise(judge.name, rows, a, b, seed), log=log.name)


def judged_row(instruction: Instruction, a: str, b: str, won: float) -> JudgedRow:
    """The row of an instruction: 1 where a's reply is better."""
    return JudgedRow(id=instruction.id, prompt=instruction.text, a=a, b=b, won=won)


def summarise(
    judge: str,
    rows: Sequence[JudgedRow],
    a: Replies,
    b: Replies,
    seed: int = 0,
    people: PeoplesWork | None = None,
) -> Versus:
    """The figures of judged rows."""
    if not rows:
        return Versus(judge, a, b, None, None, None, None, None, (), people)
    won = np.array([row.won for row in rows], np.float64)
    lengths_a = [len(row.a) + 1 for row in rows]
    lengths_b = [len(row.b) + 1 for row in rows]
    bias, consistent = None, None
    places = [(row.a_shown_first, row.a_shown_second) for row in rows]
    both = [(one, two) for one, two in places if one is not None and two is not None]
    if both:
        firsts = [(first + 1 - second) / 2 for first, second in both]
        bias = bootstrap_ratio([first - 0.5 for first in firsts], seed=seed)
        same = [(first > 0.5) == (second > 0.5) for first, second in both]
        consistent = sum(same) / len(same)
    return Versus(
        judge,
        a,
        b,
        share_interval(won, seed=seed),
        rate_at_equal_length(won, lengths_a, lengths_b, seed=seed),
        bias,
        consistent,
        float(np.mean(won == 0.5)),
        rows,
        people,
    )


def wins(scores_a: ArrayLike, scores_b: ArrayLike) -> Floats:
    """1 where a scores higher, 0 where b does, ½ where they are equal."""
    difference = np.asarray(scores_a, np.float64) - np.asarray(scores_b, np.float64)
    return (np.sign(difference) + 1.0) / 2.0


def win_rate(
    scores_a: ArrayLike, scores_b: ArrayLike, *, seed: int = 0, resamples: int = 10_000
) -> Interval:
    """Share of prompts on which a scores higher, ties counting ½, with its 95 % interval."""
    return share_interval(wins(scores_a, scores_b), seed=seed, resamples=resamples)


def length_controlled_win_rate(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 2_000,
) -> Interval:
    """The win rate of a that the same replies would have at equal length.

    The wins are regressed on the log ratio of lengths,

        P(a wins) = σ(b₀ + b₁ · log(length_a / length_b)),

    and the rate at equal length is σ(b₀). It is the idea of length-controlled AlpacaEval
    (Dubois et al. 2024, section 3), without its terms for the instruction's difficulty and its
    tanh. The interval is a percentile bootstrap over prompts, with a regression for each resample.

    Limits: it removes all that is linear in the log ratio, whether length moved the judge by itself
    or a better reply happened to be longer; and it extrapolates when hardly any two replies are
    of similar length.

    Args:
        scores_a, scores_b: a judge's score of each side's reply to the same prompts.
        lengths_a, lengths_b: lengths of the replies, at least 1 (count the end of turn).
    """
    won = wins(scores_a, scores_b)
    return rate_at_equal_length(won, lengths_a, lengths_b, seed=seed, resamples=resamples)


def rate_at_equal_length(
    won: Floats,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 2_000,
) -> Interval:
    """`length_controlled_win_rate` of shares of a win, such as several people's mean.

    Args:
        won: (prompts,): 1 where a won, 0 where b did, or between. Where all are the same, nothing
            can be told of the lengths, and it is the raw rate.
    """
    if (won == won[:1]).all():
        return share_interval(won, seed=seed)
    ratio = np.log(np.asarray(lengths_a, np.float64) / np.asarray(lengths_b, np.float64))
    design_n2 = np.stack([np.ones_like(ratio), ratio], axis=1)
    value = float(sigmoid(fit_logistic(design_n2, won, ridge=RIDGE)[0, 0]))
    parts = [
        sigmoid(fit_logistic(design_n2, won, counts, ridge=RIDGE)[:, 0])
        for counts in resample_counts(won.size, resamples, seed)
    ]
    return percentile_interval(value, np.concatenate(parts))
