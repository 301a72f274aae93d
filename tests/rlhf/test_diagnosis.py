"""Each warning is given for its own made-up history, and none for a healthy one."""

from __future__ import annotations

import math

import pytest

from lmsmith.rlhf.diagnosis import WINDOW, diagnose, diagnose_frontier

Row = dict[str, float]


def healthy(count: int = 30) -> list[Row]:
    """Reward and KL rise and level off, entropy falls a little, lengths waver."""
    rows: list[Row] = []
    for number in range(count):
        progress = 1 - math.exp(-number / 10)
        rows.append(
            {
                "objective/kl": 4.0 * progress,
                "objective/scores_std": 0.4,
                "objective/scores": -0.2 + 0.8 * progress,
                "objective/response_tokens": 14.0 + 3 * math.sin(number),
                "policy/entropy_avg": 3.0 - 0.8 * progress,
                "policy/clipfrac_avg": 0.08,
                "val/share_ended": 0.95 - 0.05 * progress,
            }
        )
    return rows


def names(history: list[Row], budget: float = 20.0) -> list[str]:
    return [name for name, _ in diagnose(history, budget)]


def changed(name: str, first: float, last: float) -> list[Row]:
    rows = healthy()
    for number, row in enumerate(rows):
        row[name] = first + (last - first) * number / (len(rows) - 1)
    return rows


def test_a_healthy_run_is_left_alone_at_every_iteration() -> None:
    rows = healthy(60)
    for count in range(len(rows) + 1):
        assert names(rows[:count]) == []


@pytest.mark.parametrize(
    ("expected", "metric", "first", "last", "words"),
    [
        ("negative_kl", "objective/kl", 0.0, -2.0, "top-p"),
        ("kl_over_budget", "objective/kl", 0.0, 60.0, "over its budget of 20"),
        ("entropy_collapse", "policy/entropy_avg", 3.0, 0.3, "learning rate"),
        ("length_drift", "objective/response_tokens", 12.0, 45.0, "prefers a length"),
        ("length_drift", "objective/response_tokens", 20.0, 2.0, "from 1"),
        ("clipping", "policy/clipfrac_avg", 0.1, 0.6, "tokens are clipped"),
        ("never_ended", "val/share_ended", 0.02, 0.01, "raise sft.epochs"),
        ("equal_rewards", "objective/scores_std", 0.0, 0.0, "the same reward"),
        ("no_end", "val/share_ended", 0.95, 0.1, "missing_eos_penalty"),
    ],
)
def test_each_trouble_has_its_name_and_a_cause(
    expected: str, metric: str, first: float, last: float, words: str
) -> None:
    history = changed(metric, first, last)
    assert names(history) == [expected]
    assert words in diagnose(history, 20.0)[0][1]


def frontier(reward: list[float], judge: list[float]) -> list[Row]:
    return [
        {"kl": 2.0 * step, "reward": r, "judge": j}
        for step, (r, j) in enumerate(zip(reward, judge, strict=True))
    ]


@pytest.mark.parametrize(
    ("reward", "judge", "told"),
    [
        ([0.0, 0.5, 1.0], [0.0, 0.3, -0.1], True),  # ends below where it began
        ([0.0, 0.5, 0.8, 1.0], [0.0, 0.9, 0.5, 0.2], True),  # falls for two steps
        ([0.0, 0.5, 0.8, 1.0], [0.0, 0.5, 0.9, 0.8], False),  # one step down is no news
        ([0.0, 0.5, 0.8, 0.4], [0.0, 0.9, 0.5, 0.2], False),  # the reward falls with it
        ([1.0, 0.5, 0.2], [0.5, 0.3, 0.1], False),  # nothing was optimised
        ([0.0], [0.0], False),
    ],
)
def test_a_reward_that_rises_while_the_judge_falls(
    reward: list[float], judge: list[float], told: bool
) -> None:
    sentence = diagnose_frontier(frontier(reward, judge))
    assert (sentence is not None) == told
    if sentence is not None:
        best = 2.0 * judge.index(max(judge))
        assert f"best at a KL of {best:.1f} nats" in sentence


def test_without_a_judge_there_is_nothing_to_fall() -> None:
    points = [{"kl": 0.0, "reward": 0.0}, {"kl": 9.0, "reward": 5.0}]
    assert diagnose_frontier(points) is None


def test_one_bad_iteration_is_no_news_and_no_budget_no_warning() -> None:
    rows = healthy()
    rows[-1]["policy/entropy_avg"] = 0.5
    rows[-1]["objective/response_tokens"] = 25.0
    assert names(rows) == []
    assert names(changed("objective/kl", 0.0, 500.0), budget=0.0) == []
    assert names([dict.fromkeys(healthy()[0], -50.0)] * (WINDOW - 1)) == []


def test_the_end_of_a_short_run_is_judged_too() -> None:
    row = healthy(1)[0] | {"val/share_ended": 0.0}
    assert diagnose([row, row]) == []
    assert [name for name, _ in diagnose([row, row], ends=True)] == ["never_ended"]
