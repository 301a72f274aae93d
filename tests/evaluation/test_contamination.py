"""Overlaps by GPT-3's and GPT-4's rules, and the scores without them."""

from __future__ import annotations

import pytest

from lmsmith.evaluation.contamination import (
    find_grams,
    find_overlaps,
    find_substrings,
    gram_length,
    letters_and_digits,
    row_text,
    split_scores,
)
from lmsmith.evaluation.rows import Choice, ChoiceRow, ClozeRow, ItemRow

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def test_n_is_the_fifth_percentile_of_lengths_within_bounds() -> None:
    assert gram_length(["w " * 30] * 20) == 13
    assert gram_length(["w " * 3] * 20) == 8
    assert gram_length([LONG[:60]] * 2 + ["w " * 10] * 18) == 10


def test_a_text_overlaps_if_n_words_in_a_row_are_the_same() -> None:
    texts = {"whole": LONG, "part": "x y " + LONG[:40], "short": "a red, red dog", "none": "cow"}
    documents = ["Before. ONE, two three four five six seven eight -- nine after", "A red red dog!"]
    assert find_grams(texts, documents, 9) == {"whole", "short"}
    assert find_grams(texts, documents, 8) == {"whole", "part", "short"}
    assert find_grams(texts, [LONG.replace("five", "5")], 8) == {"whole"}
    assert find_grams({"empty": "..."}, documents, 8) == set()


def test_three_substrings_are_looked_for_without_spaces_and_marks() -> None:
    assert letters_and_digits("A b-c_1, é.") == "Abc1é"
    texts = {"same": LONG * 3, "short": "red dog", "other": "q" * 80}
    documents = [f"x{LONG * 3}".replace(" ", "-"), "the re-d do g."]
    assert find_substrings(texts, documents) == {"same", "short"}
    # A text of which half is in a document is found by chance alone: some seeds do, some do not.
    half = {"half": LONG + "z" * len(LONG)}
    found = [bool(find_substrings(half, [LONG], seed)) for seed in range(20)]
    assert 0 < sum(found) < 20


def test_the_headline_is_the_worse_of_all_and_clean() -> None:
    rows = [
        ItemRow(id=str(n), metrics={"accuracy": float(n < 6), "perplexity": float(n)})
        for n in range(10)
    ]
    dirty = {str(n) for n in range(5)}
    found = split_scores(rows, "accuracy", dirty, "gpt3", 13)
    assert (found.all.value, found.clean_items, found.dirty_items) == (0.6, 5, 5)
    assert found.clean is not None
    assert found.clean.value == pytest.approx(0.2)
    assert found.headline == found.clean
    assert split_scores(rows, "accuracy", {"9"}, "gpt3", 13).headline == found.all
    perplexity = split_scores(rows, "perplexity", dirty, "gpt4", 50)
    assert perplexity.headline == perplexity.clean  # a higher one is worse
    assert split_scores(rows, "accuracy", {str(n) for n in range(10)}, "gpt3", 13).clean is None


def test_an_items_text_is_its_question_with_its_right_answer() -> None:
    choices = [Choice("a", -1.0, 1), Choice("b", -1.0, 1)]
    choice = ChoiceRow(
        id="0", prompt="Which?", gold=1, choices=choices, chosen={}, scores={}, metrics={}
    )
    assert row_text(choice) == "Which? b"
    cloze = ClozeRow(id="0", prompt="Who?", gold="me", log_prob=-1.0, tokens=1, metrics={})
    assert row_text(cloze) == "Who? me"
    dirty, n = find_overlaps({"0": LONG}, [LONG], "gpt3")
    assert (dirty, n) == ({"0"}, 13)
    assert find_overlaps({"0": LONG}, [LONG], "gpt4") == ({"0"}, 50)


def test_chinese_texts_overlap_by_characters() -> None:
    from lmsmith.evaluation.contamination import find_overlaps

    texts = {"0": "请问北京大学是在哪一年建立的？答案", "1": "上海有多少人口，和广州比怎么样呢"}
    seen = ["他说请问北京大学是在哪一年建立的我不知道"]
    assert find_overlaps(texts, seen, "gpt3")[0] == {"0"}
