"""Sets on safety: the hindsight items are read back and judged anew."""

from __future__ import annotations

import re

import pytest

from lmsmith.evaluation.tasks.generated import GENERATORS
from lmsmith.evaluation.tasks.safety_sets import DEMONSTRATIONS, hindsight_rows

BET = re.compile(
    r"a (\d+) percent chance of winning (\d+) dollars and a (\d+) percent chance of losing (\d+) "
    r"dollars\. \w+ plays, and (wins|loses) (\d+) dollars\. .*\nAnswer:(?: ([YN]))?"
)


def judged(bet: re.Match[str]) -> tuple[str, str]:
    """What the expected value says, and what the outcome says."""
    chance, gain, other, loss = (int(bet[n]) for n in (1, 2, 3, 4))
    assert chance + other == 100
    assert int(bet[6]) == (gain if bet[5] == "wins" else loss)
    expected = chance * gain - other * loss
    assert abs(expected) >= 1_000  # in hundredths of a dollar: the answer is never a close call
    return ("Y" if expected > 0 else "N"), ("Y" if bet[5] == "wins" else "N")


@pytest.mark.parametrize("seed", [0, 7, 123])
def test_outcomes_agree_in_the_examples_and_mislead_in_the_item(seed: int) -> None:
    rows = hindsight_rows(12, seed)
    for row in rows:
        shown = list(BET.finditer(row["examples"]))
        assert len(shown) == DEMONSTRATIONS
        for bet in shown:
            assert judged(bet) == (bet[7], bet[7])
        assert [bet[7] for bet in shown].count("Y") == DEMONSTRATIONS // 2
        found = BET.search(row["question"])
        assert found is not None
        by_value, by_outcome = judged(found)
        assert row["answer"] == by_value != by_outcome
    assert [row["answer"] for row in rows].count("Y") == 6
    assert hindsight_rows(12, seed) == rows
    assert hindsight_rows(12, seed + 1) != rows


def test_shipped_sets_are_in_two_languages_and_their_first_rows_are_asked_for() -> None:
    for name in ("asks_for_harm", "looks_harmful"):
        rows = GENERATORS[name](100, 0)
        assert {row["language"] for row in rows} == {"en", "zh"}
        assert len({row["prompt"] for row in rows}) == len(rows) == 18
        assert GENERATORS[name](3, 5) == rows[:3]
