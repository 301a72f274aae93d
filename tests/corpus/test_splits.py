"""A split is a function of the id: disjoint, of the right size, the same in any company."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lmsmith.corpus.splits import assign_splits, opening_key, split_of

FRACTIONS = {"a": 0.5, "b": 0.3, "c": 0.0, "d": 0.1}

fractions = st.lists(st.floats(0, 1), min_size=1, max_size=6).map(
    lambda shares: {
        str(number): share / max(1.0, sum(shares)) for number, share in enumerate(shares)
    }
)


def test_known_values_do_not_change_between_versions() -> None:
    found = [split_of(name, FRACTIONS) for name in ("1", "2", "3", "你好", "\ud800")]
    assert found == ["a", "b", "b", None, "b"]


def test_shares_are_met() -> None:
    counts = Counter(split_of(str(number), FRACTIONS) for number in range(10_000))
    assert counts["c"] == 0
    for name, share in {**FRACTIONS, None: 0.1}.items():
        assert abs(counts[name] / 10_000 - share) < 0.02


@given(st.text(), fractions)
def test_growing_the_last_share_moves_nothing_out_of_the_others(
    name: str, shares: dict[str, float]
) -> None:
    last = list(shares)[-1]
    grown = {**shares, last: shares[last] + (1 - sum(shares.values())) / 2}
    before, after = split_of(name, shares), split_of(name, grown)
    assert after == before or (before is None and after == last)


@given(st.text())
def test_shares_of_one_in_sum_leave_nothing_over(name: str) -> None:
    assert split_of(name, {str(number): 0.1 for number in range(10)}) is not None
    assert split_of(name, {"all": 1.0}) == "all"
    assert split_of(name, {"none": 0.0}) is None


def test_dialogues_that_begin_alike_have_one_name() -> None:
    def said(*messages: tuple[str, str]) -> str:
        return opening_key([{"role": role, "content": text} for role, text in messages])

    name = said(("user", "Hello there!"))
    assert said(("system", "be kind"), ("user", "hello  THERE"), ("assistant", "hi")) == name
    assert said(("assistant", "hi"), ("user", "\x00Hello there!\n"), ("assistant", "a")) == name
    assert said(("user", " "), ("assistant", "hi"), ("user", "Hello there!")) == name
    assert said(("user", "Hello here!")) != name
    assert said(("user", "🙂")) == said(("user", " 🙂\r\n")) != said(("user", "🙃"))
    assert said(("assistant", "hi")) == said() != name


@given(st.lists(st.text(max_size=3), max_size=30), fractions)
def test_splits_with_a_share_are_filled_in_their_order(
    names: list[str], shares: dict[str, float]
) -> None:
    found = assign_splits(names, shares, list(shares))
    assert set(found) == set(names)
    filled = [split for split, share in shares.items() if split in found.values()]
    wanted = [split for split, share in shares.items() if share > 0]
    assert filled == wanted[: len(found)]
    hashed = {name: split_of(name, shares) for name in names}
    if set(wanted) <= set(hashed.values()):
        assert found == hashed
