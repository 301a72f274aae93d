"""Gopher's rules: a text for each, and repetition against plain counting."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest

from lmsmith.corpus.build.document import Document
from lmsmith.corpus.build.gopher import RULES, GopherConfig, apply_gopher, broken_rules
from lmsmith.corpus.build.repetition import DUPLICATE_GRAMS, TOP_GRAMS, repetition
from lmsmith.corpus.build.white_space import STOP_WORDS, count_words
from lmsmith.corpus.words import UNSPACED, read_words

draw = random.Random(0)
NAMES = ["".join(draw.choices("bcdfgklmnprst", k=draw.randrange(3, 8))) for _ in range(4000)]


def sentence(words: int, seed: int) -> str:
    picked = random.Random(seed).choices(NAMES, k=words)
    return " ".join(["the", *picked, "of", "that"]).capitalize() + "."


GOOD = "\n".join(sentence(20, seed) for seed in range(10))

BROKEN = {
    "words": sentence(20, 1),
    "mean word length": GOOD + " a I" * 300,
    "hash signs": GOOD + " #" * 30,
    "ellipses": GOOD.replace(".", "...") + "…" * 20,
    "bullet lines": "\n".join("• " + line for line in GOOD.split("\n")),
    "ellipsis lines": GOOD.replace(".\n", "...\n"),
    "alphabetic words": GOOD + "".join(f" {n}{n}{n}" for n in range(100, 190)),
    "stop words": GOOD.lower().replace("the ", "").replace("of ", ""),
    "duplicate lines": GOOD + "\nshort" * 9,
    "duplicate paragraphs": GOOD.replace("\n", "\n\n") + "\n\nshort" * 9,
    "duplicate line characters": GOOD + "\n" + "\n".join(GOOD.split("\n")[:4]),
    "duplicate paragraph characters": GOOD.replace("\n", "\n\n")
    + "\n\n"
    + "\n\n".join(GOOD.split("\n")[:4]),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_removes_its_text_and_no_good_one(rule: str) -> None:
    number = int("".join(filter(str.isdigit, rule)) or 0)
    if rule.startswith("top"):
        run = " ".join(NAMES[:number])
        text = " ".join(f"{run} {sentence(3, seed)}" for seed in range(40))
    elif rule.startswith("duplicate") and number:
        run = " ".join(NAMES[:10])
        text = GOOD + "".join(f"\n{run} {seed}." for seed in range(7))
    else:
        text = BROKEN[rule]
    good, broken = broken_rules([GOOD, text], ["en", "en"], GopherConfig().bounds())
    assert good == {}
    assert rule in broken
    (without,) = broken_rules([text], ["en"], GopherConfig(drop=(rule,)).bounds())
    assert rule not in without


def test_other_languages_are_not_asked_for_english_words_nor_chinese_for_words() -> None:
    bounds = GopherConfig().bounds()
    german = BROKEN["stop words"]
    assert "stop words" in broken_rules([german], [""], bounds)[0]
    assert broken_rules([german], ["de"], bounds) == [{}]
    picked = random.Random(1)
    chinese = "\n".join(
        "".join(chr(0x4E00 + picked.randrange(3000)) for _ in range(30)) + "。" for _ in range(6)
    )
    assert broken_rules([chinese, chinese[:40]], ["zh", "zh"], bounds) == [{}, {"words": 38.0}]
    assert broken_rules([""], [""], bounds)[0].keys() == {"words"}


def plain_repetition(text: str) -> dict[str, float]:
    words = text.split()
    total = sum(map(len, words)) or 1
    found = {}
    for n in (*TOP_GRAMS, *DUPLICATE_GRAMS):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if n in TOP_GRAMS:
            tops = [c * sum(map(len, g)) for g, c in Counter(grams).items()]
            most = max(Counter(grams).values(), default=0)
            tops = [c * sum(map(len, g)) for g, c in Counter(grams).items() if c == most > 1]
            found[f"top {n}-grams"] = min(1, max(tops, default=0) / total)
        else:
            marked = {k for i, g in enumerate(grams) if g in grams[:i] for k in range(i, i + n)}
            found[f"duplicate {n}-grams"] = sum(len(words[k]) for k in marked) / total
    return found


def test_words_between_white_space_are_those_of_plain_counting() -> None:
    picked = random.Random(7)
    parts = [
        "The",
        "be",
        "tO",
        "of,",
        "and",
        "ſ",
        "x",
        "1",
        "--",
        "_",
        "a1",
        "Ελλάς",
        "中文",
        "。",
        "ไทย",
    ]
    spaces = [" ", "\n", "\t\t", "\u00a0", "\u2003", "\x1c", "\r\n"]
    texts = ["", " ", "have", "中"]
    for alphabet in (parts, [each for each in parts if each.isascii()]):
        for count in (1, 3, 9, 40):
            picks = [picked.choice(alphabet) + picked.choice(spaces) for _ in range(count)]
            texts.append(picked.choice(["", " "]) + "".join(picks).rstrip())
    for group in (texts, [text for text in texts if text.isascii()], []):
        found = count_words(group)
        words = [text.split() for text in group]
        letterless = [[w for w in each if not any(map(str.isalpha, w))] for each in words]
        stop_words = [{w.lower() for w in each} & set(STOP_WORDS) for each in words]
        assert found.words_t.tolist() == list(map(len, words))
        assert found.characters_t.tolist() == [len("".join(each)) for each in words]
        assert found.without_letter_t.tolist() == list(map(len, letterless))
        assert found.stop_words_t.tolist() == list(map(len, stop_words))
        unspaced = [len(re.findall(f"[{UNSPACED}]", text)) for text in group]
        assert found.unspaced_t.tolist() == unspaced


def test_repetition_is_that_of_plain_counting() -> None:
    picked = random.Random(5)
    texts = ["", "a", "a b c d"] + [
        " ".join(picked.choices(["a", "bc", "def", "g"][: picked.randrange(1, 5)], k=k))
        for k in (3, 12, 30, 60, 11)
    ]
    measured = repetition(read_words(texts))
    for place, text in enumerate(texts):
        plain = plain_repetition(text)
        assert {name: values[place] for name, values in measured.items()} == pytest.approx(plain)
    assert np.max(measured["duplicate 5-grams"]) > 0.3


def test_curated_documents_pass_whatever_they_are() -> None:
    documents = [Document("a", "books", "short"), Document("b", "books", "# # #")]
    assert list(apply_gopher(documents, ("books",), GopherConfig())) == documents


def test_gopher_names_the_rule_and_counts_all_that_are_broken() -> None:
    documents = [Document("a", "s", GOOD), Document("b", "s", BROKEN["hash signs"] + " x..." * 29)]
    kept, *rest = apply_gopher(documents, ("books",), GopherConfig())
    assert kept == documents[0]
    *counts, gone = rest
    assert {count.name for count in counts} >= {"breaks hash signs", "breaks ellipses"}
    assert gone.reason.startswith("hash signs: 0.")


def test_a_group_of_curated_documents_alone_is_kept() -> None:
    documents = [Document("a", "books", "Short.")]
    assert list(apply_gopher(documents, ("books",), GopherConfig())) == documents
