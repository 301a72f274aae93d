"""How often votes promote a version that nobody prefers, and how many votes a better one needs.

Simulated votes go through the product's own test, looked at after every vote. The peer is a test
of the same votes by Wilson's interval of 95 %, which is right for one look and not for many.
"""

from __future__ import annotations

import json as json_module
from dataclasses import replace
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from lmsmith.statistics.sequential import SequentialTest, decide

SHARES = (0.5, 0.55, 0.6, 0.65, 0.7)


def simulate(
    share: float, runs: int, test: SequentialTest, ties: float, seed: int
) -> dict[str, float]:
    """Decisions on `runs` streams of votes, of which a share `ties` are ties."""
    generator = np.random.default_rng(seed)
    outcomes: list[str] = []
    stops = []
    for _ in range(runs):
        votes = (generator.random(test.max_votes) < share).astype(np.float64)
        votes[generator.random(test.max_votes) < ties] = 0.5
        found = decide(votes.tolist(), test)
        outcomes.append(found.outcome)
        stops.append(found.votes)
    return {
        "better": outcomes.count("better") / runs,
        "worse": outcomes.count("worse") / runs,
        "futile": outcomes.count("futile") / runs,
        "median_votes": float(np.median(stops)),
        "votes_90": float(np.quantile(stops, 0.9)),
    }


def peeking(runs: int, votes: int, seed: int) -> float:
    """False promotions and refusals of an interval for one look, looked at after every vote."""
    generator = np.random.default_rng(seed)
    z, found = 1.959964, 0
    n = np.arange(1, votes + 1)
    for _ in range(runs):
        share = (generator.random(votes) < 0.5).cumsum() / n
        half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        found += bool(np.any(np.abs(centre - 0.5) > half))
    return found / runs


def main(
    runs: Annotated[int, tyro.conf.arg(metavar="N")] = 10_000,
    votes: Annotated[int, tyro.conf.arg(metavar="N")] = 2_000,
    ties: float = 0.0,
    seed: int = 2017,
    json: bool = False,
) -> None:
    """Simulate the test by which votes promote a version.

    Args:
        runs: Simulated tests at each share of votes.
        votes: Most votes of one.
        ties: Share of votes that are ties.
        seed: Of the simulation.
        json: Print JSON.
    """
    test = SequentialTest(max_votes=votes)
    # Without the futility stop the false alarms are the most there can be.
    patient = replace(test, worth=0.0)
    found = {
        share: simulate(share, runs, patient if share == 0.5 else test, ties, seed + place)
        for place, share in enumerate(SHARES)
    }
    stopped = simulate(0.5, runs, test, ties, seed)
    peer = peeking(runs, votes, seed)
    false = found[0.5]
    result = {
        "runs": runs,
        "votes": votes,
        "ties": ties,
        "false_promotions": false["better"],
        "false_decisions": false["better"] + false["worse"],
        "false_decisions_of_peeking": peer,
        "futile_at_50": stopped["futile"],
        "median_votes_at_50": stopped["median_votes"],
        **{
            f"median_votes_at_{round(100 * share)}": found[share]["median_votes"]
            for share in SHARES[1:]
        },
        **{f"promoted_at_{round(100 * share)}": found[share]["better"] for share in SHARES[1:]},
    }
    if json:
        print(json_module.dumps(result))
        return
    table = Table("share of votes", "promoted", "refused", "futile", "median votes", "90 % by")
    for share, row in (*found.items(), (0.5, stopped)):
        name = f"{share:.0%}" + ("" if row is not false else ", no futility stop")
        shares = (f"{row[key]:.2%}" for key in ("better", "worse", "futile"))
        table.add_row(name, *shares, f"{row['median_votes']:.0f}", f"{row['votes_90']:.0f}")
    console = Console()
    console.print(table)
    console.print(
        f"decisions without a preference: {result['false_decisions']:.2%} (at most "
        f"{test.alpha:.0%}); an interval of 95 % looked at as often: {peer:.2%}, "
        f"{peer / max(result['false_decisions'], 1e-9):.1f} times as often"
    )


if __name__ == "__main__":
    tyro.cli(main)
