"""WordPiece: training, control tokens, and BERT's frame."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.word_piece import (
    SPECIALS,
    Frame,
    continues_word,
    fitting,
    train_word_piece,
)
from tiny_encoders import TEXTS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
FRAME = Frame.of(TOKENIZER)


def test_training_is_repeatable_and_begins_with_the_control_tokens() -> None:
    assert tiny_tokenizer().description == TOKENIZER.description
    assert [TOKENIZER.control_tokens[token] for token in range(5)] == list(SPECIALS)
    assert (FRAME.pad, FRAME.cls, FRAME.sep, FRAME.mask) == (0, 2, 3, 4)


def test_letters_lose_case_and_accents_unless_they_are_kept() -> None:
    assert TOKENIZER.encode("THE DÖG") == TOKENIZER.encode("the dog")
    cased = train_word_piece(TEXTS, 120, lowercase=False)
    assert cased.encode("The dog") != cased.encode("the dog")


@given(st.lists(st.sampled_from([*SPECIALS, "the", " ", "dog", "[mask]", "é"]), max_size=8))
def test_no_text_makes_a_control_token(parts: list[str]) -> None:
    tokens = TOKENIZER.encode("".join(parts))
    assert not {FRAME.cls, FRAME.sep, FRAME.mask, FRAME.pad} & set(tokens)


def test_it_is_saved_and_read_with_a_model(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert Frame.of(again) == FRAME
    assert again.encode("the little house [SEP]") == TOKENIZER.encode("the little house [SEP]")
    assert again.decode(again.encode("the little house")) == "the little house"


def test_continuations_are_known() -> None:
    found = continues_word(TOKENIZER)
    names = TOKENIZER.description["model"]["vocab"]
    assert all(found[token] == name.startswith("##") for name, token in names.items())
    assert any(found)


def test_a_frame_holds_one_sentence_or_two() -> None:
    assert FRAME.sequence([7, 8], None, 16) == ([2, 7, 8, 3], [0, 0, 0, 0])
    assert FRAME.sequence([7, 8], [9], 16) == ([2, 7, 8, 3, 9, 3], [0, 0, 0, 0, 1, 1])
    assert FRAME.sequence([7, 8, 9], None, 4) == ([2, 7, 8, 3], [0] * 4)
    assert FRAME.sequence([5, 6, 7, 8], [9], 6)[0] == [2, 5, 6, 3, 9, 3]


def test_the_longer_sentence_is_cut_first() -> None:
    for first, second, most in itertools.product(range(7), range(7), range(9)):
        ours = list(fitting(first, second, most))
        kept = [first, second]
        while sum(kept) > most:
            kept[1 if kept[1] >= kept[0] else 0] -= 1
        assert ours == kept, (first, second, most)


def test_other_tokenizers_have_no_frame() -> None:
    with pytest.raises(UserError, match="which encoders need"):
        Frame.of(Tokenizer.train(TEXTS, 300))
    with pytest.raises(UserError, match="no room"):
        train_word_piece(TEXTS, 5)
