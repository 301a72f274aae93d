"""Steps on single documents: what they change, remove and count."""

from __future__ import annotations

from functools import partial
from typing import Any

import ftfy
import numpy as np
import pytest

from lmsmith.core.config import decode
from lmsmith.corpus.build.clean import CleanConfig, clean, fixed_encoding
from lmsmith.corpus.build.document import Count, Document, Removed
from lmsmith.corpus.build.harmful import read_words, remove_harmful
from lmsmith.corpus.build.language import LanguageConfig, identify
from lmsmith.corpus.build.personal import KINDS, iban_is_valid, luhn, masked


def through(step: Any, *texts: str, broadcast: Any = None) -> tuple[list[Any], dict[str, float]]:
    """Documents and removed ones, and the counts."""
    documents = [Document(str(n), "s", text) for n, text in enumerate(texts)]
    found = list(step(documents, broadcast))
    counts: dict[str, float] = {}
    for each in found:
        if isinstance(each, Count):
            counts[each.name] = counts.get(each.name, 0) + each.value
    return [each for each in found if not isinstance(each, Count)], counts


def test_clean_mends_and_normalises_and_drops_boilerplate() -> None:
    step = partial(clean, config=CleanConfig(min_characters=5, boilerplate_lines=("Seite \\d+",)))
    found, counts = through(
        step,
        "Itâ€™s a cafe\u0301.\r\nPart\x00 two\x07.   \n\n\n\n\n\nEnd.",
        "We use cookies for a better site.\nThe bridge was built in 1890.\nRead more »\nSeite 12",
        "  \n\x00",
        "Share on Facebook\nSkip to content",
        "He had to share the cookies that we use with his sister, and read more about it.",
    )
    assert found[0].text == "It’s a café.\nPart two.\n\n\nEnd."
    assert found[1].text == "The bridge was built in 1890."
    assert [type(each) for each in found[2:]] == [Removed, Removed, Document]
    assert found[2].reason == "too short after cleaning"
    assert counts == {"texts_mended": 1, "boilerplate_lines": 5}
    _, (problem,) = decode(CleanConfig, {"boilerplate_lines": ["("]}, "clean")
    assert "no regular expression" in str(problem)


@pytest.mark.parametrize(
    "encoding", ["cp1252", "latin-1", "mac-roman", "cp437", "cp1251", "cp1253"]
)
def test_no_wrongly_decoded_text_is_passed_by(encoding: str) -> None:
    """What the fast check lets through is what ftfy would not have changed."""
    for text in ("It’s “so” – truly…", "Grüße", "Привет, мир", "你好", "café ☕", "naïve €5"):
        wrong = text.encode().decode(encoding, "replace")
        assert fixed_encoding(wrong) == mended(wrong)
        assert fixed_encoding(text) == text == mended(text)


def mended(text: str) -> str:
    return ftfy.fix_encoding(text)


ENGLISH = "The old bridge was built in the year 1890, and people still walk over it every day."
GERMAN = "Die alte Brücke wurde im Jahre 1890 gebaut, und noch heute gehen die Leute darüber."
CHINESE = "这座老桥建于一八九零年，人们至今每天都从桥上走过，孩子们在桥下的河里玩耍，直到天黑。"


def test_language_of_documents_and_of_paragraphs() -> None:
    found, counts = through(partial(identify, config=LanguageConfig()), ENGLISH, GERMAN, CHINESE)
    assert [each.language for each in found] == ["en", "de", "zh"]
    assert counts == {"language.en": 1, "language.de": 1, "language.zh": 1}
    config = LanguageConfig(keep=("en", "zh"))
    found, _ = through(partial(identify, config=config), ENGLISH, GERMAN, CHINESE)
    assert [each.id for each in found if isinstance(each, Document)] == ["0", "2"]
    assert found[1].reason == "in another language: de"
    config = LanguageConfig(keep=("en",), by_paragraph=True)
    mixed = f"{ENGLISH}\n{GERMAN}\nKurz.\n{ENGLISH}\nShort.\n{CHINESE}"
    found, counts = through(partial(identify, config=config), mixed, GERMAN)
    assert found[0].text == f"{ENGLISH}\n{ENGLISH}\nShort."
    assert found[1].reason == "all paragraphs in other languages"
    assert counts["paragraphs_in_other_languages"] == 3


def test_check_digits_against_their_definitions() -> None:
    """Every change of one digit is found; and published examples."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        digits = "".join(map(str, rng.integers(0, 10, 15)))
        (right,) = [n for n in range(10) if luhn(f"{digits}{n}")]
        changed = list(f"{digits}{right}")
        place = int(rng.integers(0, 16))
        changed[place] = str((int(changed[place]) + 1 + int(rng.integers(0, 9))) % 10)
        assert luhn("".join(changed)) == ("".join(changed) == f"{digits}{right}")
    for valid in ("DE89 3704 0044 0532 0130 00", "GB82 WEST 1234 5698 7654 32", "NO9386011117947"):
        assert iban_is_valid(valid)
        assert not iban_is_valid(valid[:-1] + str((int(valid[-1]) + 1) % 10))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ann.b+c@mail.example.org.", "write to [mail]."),
        ("call +44 20 7946 0958 or (206) 555-0123", "call [phone] or [phone]"),
        ("手机13812345678，座机010-62345678", "手机[phone]，座机[phone]"),
        ("pay to DE89 3704 0044 0532 0130 00 now", "pay to [iban] now"),
        ("card 4111 1111 1111 1111, 5500-0000-0000-0004", "card [card], [card]"),
        ("AKIAIOSFODNN7EXAMPLE ghp_" + "a1B2" * 9, "[key] [key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----", "[key]"),
        # No personal data: wrong check digits, dates, versions, addresses, long numbers.
        ("4111 1111 1111 1112", None),
        ("DE88 3704 0044 0532 0130 00", None),
        ("2002-08-21 12:30, 10.0.0.1, 1.2.3.4, ISBN 978-3-16-148410-0, 3.141592653589793", None),
        ("https://a.example/2020-10-12/1234567890 @handle a@b", None),
    ],
)
def test_personal_data_is_masked_and_nothing_else(text: str, expected: str | None) -> None:
    found, counts = masked(text, KINDS)
    assert found == (expected or text)
    assert sum(counts.values()) == found.count("[")
    assert masked(text, ()) == (text, {})


def test_harmful_words_are_whole_words_of_any_case() -> None:
    words = read_words("# a list\ndarn\n\nbad luck\n坏话\n")
    step = partial(remove_harmful, most=2)
    texts = ("Darn! What bad  luck", "DARN, darn.", "darnel and darning", "说坏话，坏话")
    found, _ = through(step, *texts, broadcast=words)
    assert [isinstance(each, Removed) for each in found] == [False, True, False, True]
    assert found[1].reason == "harmful words: darn"
