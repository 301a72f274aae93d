"""A tokenizer's regular expression takes no longer than it may; published ones are not slowed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lmsmith.core.errors import UserError
from lmsmith.tokenizers import Tokenizer, patterns
from lmsmith.tokenizers.patterns import FAST, PatternGuard, is_fast

OWN = Tokenizer.train(["the dog ran to the river, and 12 cats didn't"] * 3, 300)
TEXT = "The dog didn't\r\n  run  123 times! \n"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = "[一-龥぀-ゟ゠-ヿ]+"


def cut_by(expression: str) -> Tokenizer:
    description: dict[str, Any] = copy.deepcopy(OWN.description)  # type: ignore[arg-type]
    description["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": expression}
    return Tokenizer(description, OWN.format)


@pytest.mark.parametrize(
    "expression",
    [LLAMA_3, QWEN_2, GPT_4O, DEEPSEEK, r"\p{N}{1,3}", r"\s+", " {2,}", "\n", r"\d", " ?[0-9]+"],
)
def test_published_expressions_need_no_other_process(
    expression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_fast(expression)
    monkeypatch.setattr(patterns, "WORKER", None)
    assert cut_by(expression).encode(TEXT)
    assert OWN.encode(TEXT)


@pytest.mark.parametrize(
    "expression",
    ["(a+)+", "a*a*b", "a|b", "[a]+[b]+", r"\1", "(?=a)", "[a&&[b]]", "a{999}", "^", "."],
)
def test_others_do(expression: str) -> None:
    assert not is_fast(expression)


def test_the_fast_ones_are_fast_on_every_run_of_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "is_fast", lambda _: False)
    runs = [
        " ",
        "\n",
        "a",
        "A",
        "1",
        "!",
        "'",
        "\u0301",
        "aA",
        " \n",
        "'s",
        "a'",
        " a",
        "\r\n ",
        "a1",
    ]
    texts = [run * (20_000 // len(run)) + end for run in runs for end in ("", "x", "!", " ")]
    for expression in FAST:
        split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}
        PatternGuard({"pre_tokenizer": split | {"invert": False}}).check(texts)


def test_an_unknown_honest_expression_gives_the_same_tokens() -> None:
    one, other = cut_by(LLAMA_3), cut_by(f"(?:{LLAMA_3})")
    assert other.encode(TEXT) == one.encode(TEXT)
    assert other.encode_batch([TEXT, "", "a" * 9999]) == one.encode_batch([TEXT, "", "a" * 9999])


@pytest.mark.parametrize("place", ["pre_tokenizer", "normalizer"])
@pytest.mark.parametrize("expression", ["(?:a|a){21}[bc]", "a*a*[bc]", "(?:(?:a|a){20}|x)[bc]"])
def test_a_slow_expression_is_refused_and_remembered(
    expression: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    tokenizer = cut_by(expression)
    if place == "normalizer":
        replace = {"type": "Replace", "pattern": {"Regex": expression}, "content": "x"}
        tokenizer = Tokenizer({**OWN.description, "normalizer": replace}, OWN.format)
    assert tokenizer.encode("dog")
    with pytest.raises(UserError, match=r"regular expressions need more than 0\.3\d* seconds"):
        tokenizer.encode("a" * 9000 + "!c")
    monkeypatch.setattr(patterns, "WORKER", None)
    for encode in (lambda: tokenizer.encode("dog"), lambda: tokenizer.encode_batch(["dog"])):
        with pytest.raises(UserError, match="for 9,002 characters"):
            encode()
