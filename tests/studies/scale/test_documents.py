"""The generated documents: rules that hold, sums that are right, pairs that stay held out."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.studies.scale.documents import (
    CONTEXT,
    DIGITS,
    HELD_OUT,
    LINES,
    PATTERN_SHARES,
    SHARES,
    StudyBatches,
    Writer,
    byte_tokenizer,
)
from lmsmith.studies.scale.texts import (
    CHAIN,
    DIRECT,
    LETTERS,
    PATTERNS,
    SYMBOLS,
    Sum,
    best_accuracy,
    draw_document,
    draw_sentence,
    draw_sum,
    entropy_per_character,
    read_answer,
)

NUMBERS = st.integers(0, 10**DIGITS - 1)


@given(NUMBERS, NUMBERS)
def test_each_step_of_a_chain_follows_from_digits_and_carry(left: int, right: int) -> None:
    asked = Sum(left, right)
    steps = re.findall(r"(\d)\+(\d)\+(\d)=(\d\d);", asked.chain)
    width = max(len(str(left)), len(str(right)))
    assert len(steps) == width
    carry, units = 0, ""
    for place, (one, other, carried, total) in enumerate(steps):
        assert int(one) == left // 10**place % 10
        assert int(other) == right // 10**place % 10
        assert int(carried) == carry
        assert int(total) == int(one) + int(other) + int(carried)
        carry, units = int(total) // 10, total[1] + units
    assert int(str(carry) + units) == left + right


@given(NUMBERS, NUMBERS)
def test_an_answer_is_read_from_either_style_of_reply(left: int, right: int) -> None:
    asked = Sum(left, right)
    for style in (DIRECT, CHAIN):
        assert read_answer(style, asked.reply(style)) == str(left + right)
    assert asked.reply(CHAIN) == f"{asked.chain}={left + right}"
    assert asked.held_out == Sum(right, left).held_out


def test_an_unfinished_chain_has_no_answer() -> None:
    assert read_answer(CHAIN, "7+5+0=12;") != Sum(47, 85).answer
    assert read_answer(CHAIN, "") == ""


def test_trained_and_held_out_sums_share_no_pair() -> None:
    seen: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
    for held_out in seen:
        chance = np.random.default_rng(1)
        for digits in range(1, DIGITS + 1):
            for _ in range(200):
                asked = draw_sum(digits, chance, held_out=held_out)
                assert len(str(asked.left)) == len(str(asked.right)) == digits
                seen[held_out].add(tuple(sorted((asked.left, asked.right))))
    assert not seen[True] & seen[False]


def test_held_out_pairs_are_an_eighth() -> None:
    share = np.mean([Sum(a, b).held_out for a in range(100, 300) for b in range(a, 300)])
    assert 0.11 < share < 0.14


@pytest.mark.parametrize("kind", PATTERNS)
def test_all_lines_of_a_document_follow_one_rule(kind: str) -> None:
    chance = np.random.default_rng(3)
    rules = set()
    for _ in range(40):
        lines = draw_document(kind, LINES, chance)
        rules.add(_rule_of(kind, [(line.given, line.answer) for line in lines]))
        assert all(line.line == f"{line.given}>{line.answer}\n" for line in lines)
    assert len(rules) > 10


def _rule_of(kind: str, lines: list[tuple[str, str]]) -> str:
    """Found from the lines alone; an assertion fails where they contradict each other."""
    known: dict[str, str] = {}
    if kind == "noisy_copies":
        columns = list(zip(*(answer for _, answer in lines), strict=True))
        assert len(columns) == 3
        assert all(given == "" for given, _ in lines)
        return "".join(max(column, key=column.count) for column in columns)
    if kind == "reorder":
        orders = {tuple(given.index(letter) for letter in answer) for given, answer in lines}
        assert len(orders) == 1
        return str(orders.pop())
    else:
        for given, answer in lines:
            assert [c for c in answer if c in LETTERS] == [c for c in given if c in LETTERS]
            for mark in given:
                if mark in SYMBOLS:
                    assert known.setdefault(mark, str(mark in answer)) == str(mark in answer)
        assert list(known.values()).count("True") <= len(SYMBOLS) // 2
    return str(sorted(known.items()))


def test_noisy_copies_are_of_one_word_and_as_noisy_as_is_said() -> None:
    chance = np.random.default_rng(4)
    kept = np.zeros(3)
    firsts = []
    for _ in range(500):
        lines = draw_document("noisy_copies", LINES, chance)
        assert len({line.clean for line in lines}) == 1
        for line in lines:
            assert line.asked.line == f">{line.clean}\n"
            kept += [one == other for one, other in zip(line.answer, line.clean, strict=True)]
        firsts.append(lines[0].clean[0])
    # 3 x 8,500 letters, each right with 0.7 + 0.3 / 8: the standard error is 0.005.
    assert kept / (500 * LINES) == pytest.approx(np.full(3, 0.7375), abs=0.02)
    assert set(firsts) == set("abcdefgh")
    example = draw_document("reorder", 1, chance)[0]
    assert example.asked.line == example.line


def test_the_bound_of_noisy_copies_is_what_the_likeliest_word_gets() -> None:
    """Against a reader who computes the posterior of all 512 words, on documents as drawn."""
    bound = best_accuracy("noisy_copies")
    assert bound is not None
    assert bound(0) == pytest.approx(8.0**-3)
    assert bound(1) == pytest.approx(0.7375**3)
    assert bound(2) == pytest.approx(0.7375**3)  # two that differ tell no more than one
    assert bound(16) == pytest.approx(1.0, abs=0.01)
    words = np.array(list(itertools.product(range(8), repeat=3)))
    logs = np.log([0.3 / 8, 0.7 + 0.3 / 8])
    chance = np.random.default_rng(5)
    drawn = [draw_document("noisy_copies", LINES, chance) for _ in range(2000)]
    for shots in (3, 4, 6, 8):
        right = 0.0
        for lines in drawn:
            copies = np.array([[ord(c) - ord("a") for c in x.answer] for x in lines[:shots]])
            posterior = logs[(words[:, None] == copies[None]).astype(int)].sum(axis=(1, 2))
            best = words[posterior > posterior.max() - 1e-9]
            asked = [ord(c) - ord("a") for c in lines[shots].clean]
            right += (best == asked).all(axis=1).sum() / len(best)
        error = (bound(shots) * (1 - bound(shots)) / len(drawn)) ** 0.5
        assert right / len(drawn) == pytest.approx(bound(shots), abs=4 * error)
    assert best_accuracy("reorder") is None


def test_a_batch_is_a_function_of_seed_stream_and_step() -> None:
    first, again = StudyBatches(20, 7), StudyBatches(20, 7)
    assert (first.batch(3).tokens_bt == again.batch(3).tokens_bt).all()
    assert (first.batch(3).tokens_bt != first.batch(4).tokens_bt).any()
    assert (first.batch(3).tokens_bt != StudyBatches(20, 8).batch(3).tokens_bt).any()
    assert (first.batch(3).tokens_bt != StudyBatches(20, 7, HELD_OUT).batch(3).tokens_bt).any()


def test_rows_hold_the_families_and_targets_are_what_can_be_known() -> None:
    batch = StudyBatches(20, 7).batch(0)
    assert batch.tokens_bt.shape == (20, CONTEXT)
    decode = byte_tokenizer().decode
    rows = [decode(row.tolist()) for row in batch.tokens_bt]
    patterns = [row for row in rows if row.count(">") >= LINES]
    sums = [row for row in rows if "+" in row]
    assert len(patterns) == round(20 * SHARES["patterns"])
    assert len(sums) == round(20 * SHARES["sums"])
    for row, targets in zip(batch.tokens_bt, batch.targets_bt, strict=True):
        wanted = decode([int(t) for t in targets if t != NO_TARGET])
        if ">" in decode(row.tolist()):
            assert wanted.count("\n") % LINES == 0
            assert ">" not in wanted


def test_patterns_have_their_shares_of_the_rows() -> None:
    assert set(PATTERN_SHARES) == set(PATTERNS)
    batches = StudyBatches(200, 3)
    decode = byte_tokenizer().decode
    rows = [decode(row.tolist()) for row in batches.batch_of("patterns", 0).tokens_bt]
    noisy = [row for row in rows if re.search(r"\n>", row)]
    assert len(noisy) / 200 == pytest.approx(PATTERN_SHARES["noisy_copies"], abs=0.14)


def test_every_target_is_the_token_that_follows_in_its_document() -> None:
    batch = StudyBatches(20, 7).batch(1)
    wanted = batch.targets_bt[:, :-1] != NO_TARGET
    same = batch.documents_bt[:, :-1] == batch.documents_bt[:, 1:]
    inside = wanted & same
    assert (batch.targets_bt[:, :-1][inside] == batch.tokens_bt[:, 1:][inside]).all()
    ends = batch.targets_bt[:, :-1][wanted & ~same]  # a document's last target is not read
    assert set(ends.tolist()) <= {Writer().end_of_text, int(Writer().encode("\n")[0])}


def test_no_trained_sum_is_a_held_out_one() -> None:
    trained = StudyBatches(40, 1)
    text = "".join(byte_tokenizer().decode(row.tolist()) for row in trained.batch(0).tokens_bt)
    for left, right in re.findall(r"(?<![\d+=;:])(\d{4})\+(\d{4})[=:]", text):
        assert not Sum(int(left), int(right)).held_out


def test_the_writer_s_ids_are_the_tokenizer_s() -> None:
    writer = Writer()
    text = "47+85:7+5+0=12;=132\nbc>a.b!c "
    assert writer.encode(text).tolist() == writer.tokenizer.encode(text)
    assert writer.prompt("4+")[0] == writer.tokenizer.end_of_text


def test_sentences_have_the_entropy_that_is_said() -> None:
    """A table of which word follows which, counted on many sentences, comes near to it."""
    chance = np.random.default_rng(0)
    words = draw_sentence(3_000_000, chance).split()
    pairs: dict[str, dict[str, int]] = {}
    for word, following in itertools.pairwise(words[:-1]):
        counts = pairs.setdefault(word, {})
        counts[following] = counts.get(following, 0) + 1
    nats = total = 0.0
    for counts in pairs.values():
        number = np.array(list(counts.values()), np.float64)
        nats -= float((number * np.log(number / number.sum())).sum())
        total += float(number.sum())
    length = np.mean([len(word) + 1 for word in words])
    assert nats / total / length == pytest.approx(entropy_per_character(), rel=0.01)
