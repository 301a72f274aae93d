"""A test of votes that may be looked at after every vote: a beta-binomial mixture e-process.

A vote is 1 where the candidate is preferred and 0 where the current version is. If people have no
preference, the e-value is on average 1 at most at every moment, so that it ever reaches 1/alpha
with probability alpha at most (Ville 1939; Ramdas et al. 2023, section 4), however often somebody
looks and whenever they stop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmsmith.statistics.intervals import Interval
from lmsmith.statistics.vote_settings import SequentialTest as SequentialTest

Floats = NDArray[np.float64]
Outcome = Literal["better", "worse", "futile", "undecided"]

_log_gamma = np.frompyfunc(math.lgamma, 1, 1)


@dataclass(frozen=True)
class Decision:
    """The state of a test.

    Attributes:
        outcome: ``better`` or ``worse`` is the candidate's; ``futile`` ends the test without
            either; ``undecided`` goes on.
        votes: votes that count, up to the decision; a tie under ``drop`` does not.
        share: the candidate's share of these with its anytime interval of level 1 − alpha.
        e_value: against no preference; 1/alpha decides.
    """

    outcome: Outcome
    votes: int
    share: Interval
    e_value: float


def log_e_value(
    wins: ArrayLike, votes: ArrayLike, share: float = 0.5, prior: float = 5.0
) -> Floats:
    """log [B(a + w, a + n − w) / (B(a, a) pʷ (1 − p)ⁿ⁻ʷ)], the evidence against the share p.

    Half wins are allowed: with x in [0, 1] and mean p, each factor has a mean of 1 at most, since
    qˣ(1 − q)¹⁻ˣ / pˣ(1 − p)¹⁻ˣ is convex in x.

    Args:
        wins: w, of any shape.
        votes: n, of the same shape.
        share: p, between 0 and 1.
        prior: a.
    """
    won, lost = np.asarray(wins, np.float64), np.asarray(votes, np.float64)
    lost = lost - won
    beta = _log_gamma(prior + won) + _log_gamma(prior + lost) - _log_gamma(2 * prior + won + lost)
    constant = 2 * math.lgamma(prior) - math.lgamma(2 * prior)
    evidence = np.asarray(beta, np.float64) - constant
    return np.asarray(evidence - won * math.log(share) - lost * math.log1p(-share), np.float64)


def anytime_interval(wins: float, votes: int, alpha: float = 0.05, prior: float = 5.0) -> Interval:
    """The share of votes with the interval {p : e-value against p < 1/alpha}.

    It holds at every number of votes together with probability 1 − alpha (a confidence sequence).
    """
    if not votes:
        return Interval(0.5, 0.0, 1.0)
    share, limit = wins / votes, -math.log(alpha)

    def bound(outside: float) -> float:
        """Bisection between a share that is refuted and the share seen, which never is."""
        inside = min(max(share, 1e-12), 1 - 1e-12)
        for _ in range(60):
            middle = (inside + outside) / 2
            if float(log_e_value(wins, votes, middle, prior)) < limit:
                inside = middle
            else:
                outside = middle
        return inside

    return Interval(
        share, 0.0 if wins == 0 else bound(1e-12), 1.0 if wins == votes else bound(1 - 1e-12)
    )


def decide(outcomes: Sequence[float], test: SequentialTest) -> Decision:
    """The first decision on votes in the order in which they came; later votes do not change it.

    Args:
        outcomes: 1 for the candidate, 0 for the current version, ½ for a tie.
        test: as declared before the first of them.
    """
    seen_n = np.asarray(outcomes, np.float64)
    if test.ties == "drop":
        seen_n = seen_n[seen_n != 0.5]
    seen_n = seen_n[: test.max_votes]
    wins_n, votes_n = seen_n.cumsum(), np.arange(1, len(seen_n) + 1)
    limit = -math.log(test.alpha)
    decided_n = log_e_value(wins_n, votes_n, 0.5, test.prior) >= limit
    hopeless_n = np.zeros_like(decided_n)
    if test.worth:
        hopeless_n = log_e_value(wins_n, votes_n, test.worth, test.prior) >= limit
        hopeless_n &= wins_n < test.worth * votes_n
    stops = np.flatnonzero(decided_n | hopeless_n)
    votes = int(stops[0]) + 1 if stops.size else len(seen_n)
    wins = float(wins_n[votes - 1]) if votes else 0.0
    outcome: Outcome = "undecided"
    if stops.size and decided_n[votes - 1]:
        outcome = "better" if 2 * wins > votes else "worse"
    elif stops.size or votes == test.max_votes:
        outcome = "futile"
    return Decision(
        outcome,
        votes,
        anytime_interval(wins, votes, test.alpha, test.prior),
        math.exp(float(log_e_value(wins, votes, 0.5, test.prior))) if votes else 1.0,
    )
