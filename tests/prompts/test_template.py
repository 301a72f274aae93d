"""Conversations by a template: what fits, what is dropped, what is learnt once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.prompts import encode_prompt
from lmsmith.prompts.sft_rows import conversation_windows
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.hugging_face import load_hugging_face, to_hugging_face

OWN = Tokenizer.train(["hello there, how are you? I am well, thank you. 你好"] * 4, 300)


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Our own format, but read as another's template: so our own code is the oracle."""
    folder: Path = tmp_path_factory.mktemp("templated")
    to_hugging_face(OWN, folder)
    return load_hugging_face(folder)


def conversation(lengths: list[int], system: int = 0) -> list[dict[str, str]]:
    turns = [
        {"role": "assistant" if n % 2 else "user", "content": "x" * length}
        for n, length in enumerate(lengths)
    ]
    return ([{"role": "system", "content": "s" * system}] if system else []) + turns


def whole(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    (window,) = conversation_windows(tokenizer, messages, 999, 0)
    return window


def test_prompts_are_ours_where_they_begin_with_the_user(templated: Tokenizer) -> None:
    @settings(max_examples=30)
    @given(
        st.lists(st.integers(0, 6), min_size=1, max_size=7), st.integers(0, 3), st.integers(4, 60)
    )
    def compare(lengths: list[int], system: int, limit: int) -> None:
        messages = conversation(lengths[: len(lengths) - 1 + len(lengths) % 2], system)
        try:
            ours = encode_prompt(OWN, messages, limit)
        except UserError as error:
            ours = None
            problem = error.problem
        if ours is None:
            with pytest.raises(UserError, match="need") as found:
                encode_prompt(templated, messages, limit)
            assert found.value.problem == problem
            return
        theirs = encode_prompt(templated, messages, limit)
        assert len(theirs.tokens) <= limit
        assert theirs.dropped_messages == ours.dropped_messages + ours.dropped_messages % 2
        if ours.dropped_messages % 2 == 0:
            assert theirs == ours

    compare()


def test_the_assistant_is_not_asked_to_answer_itself(templated: Tokenizer) -> None:
    with pytest.raises(UserError, match="the last message is the assistant's"):
        encode_prompt(templated, conversation([1, 1]))
    assert encode_prompt(templated, []).tokens == [OWN.end_of_text, OWN.role_token("assistant")]


def test_whole_conversations_are_ours(templated: Tokenizer) -> None:
    messages = conversation([3, 2, 0, 0, 1, 4], system=2)
    assert whole(templated, messages) == whole(OWN, messages)


def test_every_reply_is_learnt_once_and_its_windows_fit(templated: Tokenizer) -> None:
    @settings(max_examples=25)
    @given(st.lists(st.integers(0, 7), min_size=2, max_size=9), st.integers(22, 60))
    def check(lengths: list[int], limit: int) -> None:
        messages = conversation(lengths)
        windows = conversation_windows(templated, messages, limit, limit // 2)
        learnt = [
            token
            for tokens, is_target in windows
            for token, target in zip(tokens, is_target, strict=True)
            if target
        ]
        expected, targets = whole(OWN, messages)
        assert learnt == [t for t, target in zip(expected, targets, strict=True) if target]
        assert all(len(tokens) <= limit for tokens, _ in windows)

    check()
