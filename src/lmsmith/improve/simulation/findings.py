"""The record of a simulation: figures of each round over all seeds, and what they show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lmsmith.core.config import encode
from lmsmith.core.recipe import Recipe
from lmsmith.improve.simulation.world import LengthCurve, Plan
from lmsmith.statistics.intervals import Interval, percentile_interval
from lmsmith.statistics.sequential import anytime_interval

RESAMPLES = 10_000
MUCH_LONGER = 1.5
"""Answers so many times as long, or as short, may be better by their length alone."""


def bootstrap_two_ways(values: ArrayLike, seed: int = 0) -> Interval:
    """The mean with its 95 % percentile interval, rows and columns both resampled.

    Args:
        values: (seeds, prompts); with one seed its interval is over prompts alone.
    """
    table_sp = np.asarray(values, np.float64)
    seeds, prompts = table_sp.shape
    generator = np.random.default_rng(seed)
    rows_rs = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    columns_rp = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    found_r = np.einsum("rs,sp,rp->r", rows_rs, table_sp, columns_rp / prompts, optimize=True)
    return percentile_interval(float(table_sp.mean()), found_r)


Rounds = Sequence[Mapping[str, Any]]
"""The rounds of a seed (`Simulated.round`)."""


def record_of(
    plan: Plan, recipe: Recipe, seeds: Sequence[Rounds], curve: LengthCurve
) -> dict[str, Any]:
    """The record for ``--json``: each round over all seeds, then each seed's own.

    Args:
        seeds: of each its rounds, from round 0.
        curve: of the gold reward by length, which was subtracted.
    """
    start = np.array([each[0]["gold"] for each in seeds])
    first = {"gold_reward": float(start.mean()), "deviation": float(start.std())}
    first["tokens"] = float(np.mean([each[0]["tokens"] for each in seeds]))
    rows = []
    for number in range(1, len(seeds[0])):
        found = [each[number] for each in seeds]
        before = np.array([each[number - 1]["gold"] for each in seeds])
        gold = np.array([each["gold"] for each in found])
        verdicts = [each["verdict"] for each in found]
        promoted = verdicts.count("promoted")
        agreements = [each["agreement"]["value"] for each in found if each["agreement"]]
        rows.append(
            {
                "round": number,
                "gold_reward": float(gold.mean()),
                **bootstrap_two_ways(gold - before, number).named("gold_reward_rise"),
                "gold_reward_low": bootstrap_two_ways(gold - before, number).low,
                **bootstrap_two_ways(gold - start, number).named("gold_reward_from_start"),
                **_win_rate([each["votes"] for each in found]),
                "judgements": round(float(np.mean([each["judgements"] for each in found]))),
                "pairs": round(float(np.mean([each["pairs"] for each in found]))),
                "kl": float(np.mean([each["kl"] for each in found])),
                "tokens": float(np.mean([each["tokens"] for each in found])),
                "agreement": float(np.mean(agreements)) if agreements else None,
                **_gains(found, number),
                "verdict": verdicts[0]
                if len(set(verdicts)) == 1
                else f"{promoted} of {len(verdicts)} promoted",
                "verdicts": verdicts,
                "seconds": sum(each["seconds"] for each in found),
            }
        )
    return {
        "simulation": encode(plan),
        "recipe": recipe.as_dict(),
        "seeds": len(seeds),
        "start": first,
        "labelers": {
            "sigma": [each[0]["sigma"] for each in seeds],
            "wanted_agreement": 1 - plan.noise,
            "length_explains": None if plan.length_counts else curve.explained,
        },
        "rounds": rows,
        "findings": [
            *_of_gold(curve),
            *findings(rows, [each[1:] for each in seeds]),
            *_of_length(first, rows),
        ],
        "by_seed": [[_without_lists(each) for each in rounds] for rounds in seeds],
    }


def _win_rate(votes: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Share of all seeds' votes for the candidates, with its anytime interval; None without."""
    counts = [(each["votes"], each["share"]["value"]) for each in votes if each and each["votes"]]
    total = sum(count for count, _ in counts)
    if not total:
        return {"win_rate": None, "win_rate_low": None, "win_rate_high": None, "votes": 0}
    wins = sum(count * share for count, share in counts)
    return anytime_interval(wins, total).named("win_rate") | {"votes": total}


def _gains(found: Rounds, seed: int) -> dict[str, Any]:
    """Gains of the candidates over their parents: by gold, and by the reward model (``reward``).

    The deviations are those of the parents' scores, in which the two can be compared.
    """
    result: dict[str, Any] = {}
    names = {"candidate_gold_gain": ("candidate_gold", "parent_gold")}
    names["reward"] = ("reward", "parent_reward")
    for name, (ours, theirs) in names.items():
        pairs = [(each[ours], each[theirs]) for each in found if each[ours] is not None]
        if pairs:
            gains = np.array([np.subtract(*each) for each in pairs])
            result |= bootstrap_two_ways(gains, seed).named(name)
            result[f"{name}_deviation"] = float(np.std([each[1] for each in pairs]))
        else:
            ends = (f"{name}{end}" for end in ("", "_low", "_high", "_deviation"))
            result |= dict.fromkeys(ends)
    return result


def findings(rows: Rounds, seeds: Sequence[Rounds]) -> list[str]:
    """What each round shows, in sentences, and what limits it where gold does not rise."""
    found = []
    for number, row in enumerate(rows):
        ours = [each[number] for each in seeds]
        rise = f"{row['gold_reward_rise']:+.3f}, low end {row['gold_reward_low']:+.3f}"
        if row["gold_reward_low"] > 0:
            found.append(f"Round {row['round']}: gold reward rises ({rise}).")
            continue
        found.append(
            f"Round {row['round']}: gold reward is not shown to rise ({rise}): {row['verdict']}. "
            + _limits(row, ours)
        )
    parted = [row["round"] for row in rows if (row["reward_low"] or 0) > 0]
    parted = [n for n in parted if rows[n - 1]["candidate_gold_gain_low"] <= 0]
    if parted:
        found.append(
            "The reward model's gain is clear and gold's is not in round "
            f"{', '.join(map(str, parted))}: there proxy and gold part."
        )
    return found


def _of_gold(curve: LengthCurve) -> list[str]:
    """A sentence on what was subtracted from the gold reward."""
    if not curve.answers:
        return []
    return [
        "The median gold reward of each length is subtracted, so an answer is not better for being "
        f"shorter or longer; it explains {curve.explained:.0%} of the variance of "
        f"{curve.answers:,} first answers."
    ]


def _of_length(start: Mapping[str, float], rows: Rounds) -> list[str]:
    """A sentence where the answers' length has changed much."""
    before, now = max(1.0, start["tokens"]), max(1.0, rows[-1]["tokens"])
    if max(before / now, now / before) < MUCH_LONGER:
        return []
    return [
        f"Answers went from {before:.1f} to {now:.1f} tokens: a part of the gain may be their "
        "length alone."
    ]


def _limits(row: Mapping[str, Any], ours: Rounds) -> str:
    """What stands between a round and a rise of gold, as far as its figures tell."""
    reasons = []
    failed = Counter(
        name for each in ours for name, state in each["gates"].items() if state == "failed"
    )
    if failed:
        listed = ", ".join(f"{name} ({count} of {len(ours)})" for name, count in failed.items())
        reasons.append(f"Gates that failed: {listed}.")
    gain = row["candidate_gold_gain"]
    ends = f"{gain:+.3f}, {row['candidate_gold_gain_low']:+.3f} to "
    ends += f"{row['candidate_gold_gain_high']:+.3f}"
    if row["candidate_gold_gain_low"] > 0:
        reasons.append(f"The candidates are better by gold ({ends}), and were not promoted.")
    else:
        reasons.append(f"The candidates are not clearly better by gold ({ends}).")
        if row["reward_low"] is not None and row["reward_low"] <= 0:
            reasons.append(
                "PPO does not raise the reward model's score either: it moves too little."
            )
    accuracy = [each["figures"].get("gates.reward_accuracy") for each in ours]
    known = [each for each in accuracy if each is not None]
    if known:
        reasons.append(
            f"The reward model orders {np.mean(known):.1%} of the held-out pairs as labelers did."
        )
    return " ".join(reasons)


def _without_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """A seed's round with means in the place of values for each prompt."""
    return {
        name: float(np.mean(value)) if isinstance(value, list) else value
        for name, value in row.items()
        if name != "figures"
    } | {"figures": dict(row.get("figures", {}))}
