"""Words of many texts at once, against Python's own strings and regular expressions."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import numpy as np
import pytest

from lmsmith.corpus import words
from lmsmith.corpus.words import batches, gram_hashes, normal_words, read_words

ALPHABET = "aAbBzZéÉß0,.' -_\n\x00İΣς北京ですไทยहिन्दी🙂\ud800"


def _texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(ALPHABET, k=draw.choice([0, 1, 5, 40]))) for _ in range(count)]


def _strings(texts: list[str]) -> list[list[str]]:
    """Each text's words by the places that `read_words` gives."""
    found = read_words(texts)
    joined = "\n".join(texts)
    spans = list(zip(found.starts_w.tolist(), found.ends_w.tolist(), strict=True))
    first = found.first_t.tolist()
    return [
        [joined[a:b] for a, b in spans[one:next_one]] for one, next_one in itertools.pairwise(first)
    ]


def test_words_are_small_letters_without_marks_and_single_characters_of_unspaced_scripts() -> None:
    text = "I'm GOING to the U.S. government, part_2! 北京大学 東京で ไทย हिन्दी Été 3.5"
    expected = "i m going to the u s government part 2 北 京 大 学 東 京 で ไ ท ย हिन्दी été 3 5"
    assert " ".join(normal_words(text)) == expected
    assert normal_words("") == normal_words(" -- ") == []
    assert normal_words("İĞ ΟΔΟΣ οδος") == ["iğ", "οδοσ", "οδοσ"]


def test_ascii_words_are_those_of_a_regular_expression() -> None:
    draw = random.Random(1)
    text = "".join(chr(draw.randrange(128)) for _ in range(5000))
    assert normal_words(text) == re.findall("[a-z0-9]+", text.lower())


@pytest.mark.parametrize("piece", [7, 1 << 17])
def test_each_text_has_the_words_that_it_has_alone(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "PIECE", piece)
    words._powers.cache_clear()
    texts = _texts(2, 300)
    together = read_words(texts)
    for number, (text, strings) in enumerate(zip(texts, _strings(texts), strict=True)):
        alone = read_words([text])
        part = slice(together.first_t[number], together.first_t[number + 1])
        assert np.array_equal(together.hashes_w[part], alone.hashes_w)
        starts = together.starts_w[part] - together.offset_t[number]
        assert np.array_equal(starts, alone.starts_w)
        assert [normal_words(string) for string in strings] == [[w] for w in normal_words(text)]
    words._powers.cache_clear()


def test_hashes_are_equal_where_words_are_and_nowhere_else() -> None:
    texts = [f"{n} {n:b} {n:x}x {'ab' * (n % 40)}c" for n in range(20_000)]
    found = read_words(texts)
    strings = [word for text in texts for word in normal_words(text)]
    assert len(strings) == len(found.hashes_w)
    assert len(set(zip(strings, found.hashes_w.tolist(), strict=True))) == len(set(strings))
    assert len(np.unique(found.hashes_w)) == len(set(strings))


def test_a_words_hash_is_its_polynomial_modulo_2_to_the_64() -> None:
    def polynomial(word: str) -> int:
        powers = (pow(int(words._BASE), words.PIECE + n, 1 << 64) for n in range(len(word)))
        return sum((ord(c) + 1) * power for c, power in zip(word, powers, strict=True)) % (1 << 64)

    found = read_words(["The corpus, 语", "naïve"]).hashes_w.tolist()
    assert found == [polynomial(word) for word in ("the", "corpus", "语", "naïve")]


@pytest.mark.parametrize("whole", [False, True])
def test_grams_are_words_in_a_row_of_one_text(whole: bool) -> None:
    draw = random.Random(3)
    texts = [" ".join(draw.choices("abcde", k=k)) for k in [0, 1, 2, 3, 9, 0, 300, 2, 0]]
    hashes, first = gram_hashes(read_words(texts), 3, whole)
    expected = []
    for text in texts:
        parts = text.split()
        grams = [tuple(parts[i : i + 3]) for i in range(len(parts) - 2)]
        expected.append(grams or ([tuple(parts)] if whole and parts else []))
    assert np.diff(first).tolist() == [len(grams) for grams in expected]
    named = set(zip([g for grams in expected for g in grams], hashes.tolist(), strict=True))
    assert len(named) == len({g for g, _ in named}) == len({h for _, h in named})


def test_a_word_longer_than_a_piece_does_not_depend_on_the_texts_before() -> None:
    long = "x" * (3 * words.PIECE + 5)
    alone = Counter(read_words([long]).hashes_w.tolist())
    assert sum(alone.values()) == 4
    both = read_words(["before, some. ", long, "after"])
    assert Counter(both.hashes_w[both.first_t[1] : both.first_t[2]].tolist()) == alone


def test_batches_hold_all_texts_in_order() -> None:
    texts = ["a" * n for n in (3, 3, 50, 0, 0, 4, 4)]
    slices = list(batches(texts, 8))
    assert [text for part in slices for text in texts[part]] == texts
    assert all(len(texts[part]) == 1 or sum(map(len, texts[part])) <= 8 for part in slices)
    assert list(batches([], 8)) == []
