"""Two responses to one prompt are found in every form that pairs come in; other pairs say why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.pairs import IrregularPair, read_pair
from lmsmith.corpus.rows import read_rankings

HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}
BYE = {"role": "assistant", "content": "bye"}
EMPTY = {"role": "assistant", "content": " "}


def transcript(*turns: str) -> str:
    """Turns that begin with H or A as hh-rlhf writes them."""
    names = {"H": "Human", "A": "Assistant"}
    return "".join(f"\n\n{names[turn[0]]}: {turn[1:]}" for turn in turns)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [HELLO], "chosen": "hi", "rejected": "bye"},
        {"prompt": "hello", "chosen": "hi", "rejected": "bye"},
        {"chosen": [HELLO, HI], "rejected": [HELLO, BYE]},
        {"prompt": "hello", "chosen": [HELLO, HI], "rejected": [HELLO, BYE]},
        {"prompt": [HELLO], "chosen": [HI], "rejected": [BYE]},
        {"chosen": transcript("Hhello", "Ahi"), "rejected": transcript("Hhello", "Abye")},
        {"chosen": transcript("Hhello", "A", "Ahi"), "rejected": transcript("Hhello", "Abye")},
    ],
)
def test_a_pair_is_a_ranking_of_two(row: dict[str, object]) -> None:
    assert read_pair(row, "here") == ([HELLO], ["hi", "bye"], [1, 2])


def test_turns_of_one_speaker_are_one_message() -> None:
    before = ("Ha", "Hb", "Ac", "H d\n\ne ")
    row = {"chosen": transcript(*before, "Ax", "Ay"), "rejected": transcript(*before, "Az")}
    prompt, responses, _ = read_pair(row, "here")
    assert [message["content"] for message in prompt] == ["a\nb", "c", "d\n\ne"]
    assert responses == ["x\ny", "z"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "problem"),
    [
        (("Ha", "A"), ("Ha", "Ab"), "a message is empty"),
        (("Ha", "Ab"), ("Ha", "A "), "a message is empty"),
        (("H", "Ab"), ("H", "Ac"), "a message is empty"),
        (("Ha", "A", "Hb", "Ac"), ("Ha", "A", "Hb", "Ad"), "a message is empty"),
        (("Ha", "Ab"), ("Ha", "Ab "), "are the same"),
        (("Ha", "Ab"), ("Hc", "Ab"), "differ before their last message"),
        (("Ha", "Ab"), ("Ha", "Ab", "Hc", "Ad"), "differ before their last message"),
        (("Ha", "Ab"), ("Ha",), "must end with the assistant's message"),
        (("Ha", "Ab", "Hc"), ("Ha", "Ab", "Hd"), "must end with the assistant's message"),
        (("Ab",), ("Ac",), "there is no prompt"),
    ],
)
def test_what_is_no_choice_between_two_replies_is_irregular(
    chosen: tuple[str, ...], rejected: tuple[str, ...], problem: str
) -> None:
    row = {"chosen": transcript(*chosen), "rejected": transcript(*rejected)}
    with pytest.raises(IrregularPair, match=f"here: .*{problem}") as caught:
        read_pair(row, "here")
    assert caught.value.flaw


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [HELLO], "chosen": "", "rejected": "bye"},
        {"prompt": "", "chosen": "hi", "rejected": "bye"},
        {"prompt": [HELLO], "chosen": [EMPTY], "rejected": [BYE]},
        {"prompt": "hello", "chosen": "hi", "rejected": "hi "},
        {"chosen": [HELLO, HI], "rejected": [HELLO]},
    ],
)
def test_other_forms_have_the_same_flaws(row: dict[str, object]) -> None:
    with pytest.raises(IrregularPair):
        read_pair(row, "here")


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "hi"},
        {"chosen": "hi", "rejected": "bye"},
        {"chosen": [HELLO, HI], "rejected": 3},
        {"chosen": [{"role": "bot", "content": "hi"}], "rejected": [HI]},
        {"prompt": [HI], "chosen": "hi", "rejected": "bye"},
    ],
)
def test_a_wrong_form_is_an_error_and_not_irregular(row: dict[str, object]) -> None:
    with pytest.raises(UserError, match="here") as caught:
        read_pair(row, "here")
    assert not isinstance(caught.value, IrregularPair)


def test_real_pairs_are_read() -> None:
    path = Path(__file__).parents[3] / "shared/data/preferences/hh_harmless_base.test.jsonl.gz"
    if not path.is_file():
        pytest.skip("the hh-rlhf pairs are not here: ../shared/data/preferences")
    left_out: list[IrregularPair] = []
    rankings = list(read_rankings(path, left_out))
    assert len(rankings) == 2308
    assert Counter(irregular.flaw for irregular in left_out) == {"with an empty message": 4}
    assert all(ranking.prompt[-1]["role"] == "user" for ranking in rankings)
