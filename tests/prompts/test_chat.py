"""A conversation as tokens: what is a target, what is dropped, and the Jinja form of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmsmith.core.errors import UserError
from lmsmith.prompts import encode_prompt, validate_messages
from lmsmith.prompts.chat import encode_turns
from lmsmith.prompts.sft_rows import conversation_windows
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.chat_format import JINJA_TEMPLATE

TOKENIZER = Tokenizer.train(["hello there, how are you? I am well, thank you. 你好"] * 4, 300)
T = TOKENIZER


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


contents = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["<|end|>", "<|assistant|>", "hello there", "你好"]),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    roles = itertools.cycle(draw(st.sampled_from([("user", "assistant"), ("assistant", "user")])))
    texts = draw(st.lists(contents, min_size=1, max_size=7))
    system = draw(st.lists(contents, max_size=1))
    return [message("system", text) for text in system] + [
        message(role, text) for role, text in zip(roles, texts, strict=False)
    ]


def test_tokens_and_targets_by_hand() -> None:
    messages = [
        message("system", "be"),
        message("user", "hello"),
        message("assistant", "well"),
        message("user", "you"),
        message("assistant", "thank"),
    ]
    expected: list[tuple[int, bool]] = [(T.end_of_text, False)]
    for turn in messages:
        target = turn["role"] == "assistant"
        expected += [(T.role_token(turn["role"]), False)]
        expected += [(token, target) for token in T.encode(turn["content"])]
        expected += [(T.end_of_turn, target)]
    ((tokens, is_target),) = conversation_windows(T, messages, 999, 0)
    assert list(zip(tokens, is_target, strict=True)) == expected


@given(conversations())
def test_targets_are_exactly_what_the_assistant_says(messages: list[dict[str, str]]) -> None:
    windows = conversation_windows(T, messages, 999, 0)
    assert len(windows) == any(turn["role"] == "assistant" for turn in messages)
    if not windows:
        return
    ((tokens, is_target),) = windows
    said = [token for token, target in zip(tokens, is_target, strict=True) if target]
    expected = [
        token
        for turn in messages
        if turn["role"] == "assistant"
        for token in [*T.encode(turn["content"]), T.end_of_turn]
    ]
    assert said == expected
    turns = len(messages)
    assert sum(token == T.end_of_turn for token in tokens) == turns
    roles = [T.role_token(role) for role in ("system", "user", "assistant")]
    assert sum(token in roles for token in tokens) == turns


@given(conversations(), st.booleans())
def test_the_jinja_template_writes_the_same(messages: list[dict[str, str]], ask: bool) -> None:
    rendered = (
        ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        .from_string(JINJA_TEMPLATE)
        .render(messages=messages, add_generation_prompt=ask)
    )
    opening, turns = encode_turns(T, messages)
    tokens = [*opening, *itertools.chain(*turns), *([T.role_token("assistant")] if ask else [])]
    assert T.decode(tokens, special=True) == rendered


@given(conversations())
def test_a_prompt_is_the_conversation_before_the_reply(messages: list[dict[str, str]]) -> None:
    if messages[-1]["role"] != "assistant":
        return
    ((tokens, is_target),) = conversation_windows(T, messages, 999, 0)
    prompt = encode_prompt(T, messages[:-1])
    reply = [*T.encode(messages[-1]["content"]), T.end_of_turn]
    assert prompt.tokens + reply == tokens
    assert all(is_target[len(prompt.tokens) :])
    assert prompt.dropped_messages == 0


@given(conversations(), st.integers(3, 80))
def test_a_prompt_within_a_limit_keeps_system_and_newest(
    messages: list[dict[str, str]], limit: int
) -> None:
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    has_system = bool(messages) and messages[0]["role"] == "system"
    kept_always = messages[:1] if has_system else []
    turns = messages[len(kept_always) :]
    try:
        prompt = encode_prompt(T, messages, limit)
    except UserError:
        assert len(encode_prompt(T, kept_always + turns[-1:]).tokens) > limit
        return
    dropped = prompt.dropped_messages
    assert len(prompt.tokens) <= limit
    assert prompt.tokens == encode_prompt(T, kept_always + turns[dropped:]).tokens
    if dropped:
        one_more = encode_prompt(T, kept_always + turns[dropped - 1 :])
        assert len(one_more.tokens) > limit


def test_a_prompt_may_be_empty_and_asks_the_assistant_to_begin() -> None:
    assert encode_prompt(T, []).tokens == [T.end_of_text, T.role_token("assistant")]
    system = [T.role_token("system"), *T.encode("be"), T.end_of_turn]
    asked = encode_prompt(T, [message("system", "be")]).tokens
    assert asked == [T.end_of_text, *system, T.role_token("assistant")]


def test_a_prompt_that_cannot_fit_says_what_is_needed() -> None:
    with pytest.raises(UserError, match=r"need \d+ tokens; there is room for 8"):
        encode_prompt(T, [message("system", "x"), message("user", "a long message" * 5)], 8)
    with pytest.raises(UserError, match="room for 1"):
        encode_prompt(T, [], 1)


def test_a_prompt_that_ends_with_the_assistant_is_refused() -> None:
    with pytest.raises(UserError, match="the last message is the assistant's"):
        encode_prompt(T, [message("user", "a"), message("assistant", "b")])


@given(conversations())
def test_valid_conversations_are_accepted_unchanged(messages: list[dict[str, str]]) -> None:
    assert validate_messages(messages, "here") == messages


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("hello", "'messages' must be a list, not text"),
        ([], "'messages' is empty"),
        (["hello"], "message 1 must be an object, not text"),
        ([{"role": "user"}], "message 1 has no 'content'"),
        ([{}], "message 1 has no 'role' and no 'content'"),
        ([{"role": "user", "content": "a", "name": "b"}], "message 1 has the unknown key 'name'"),
        ([message("bot", "a")], "message 1 has the role 'bot'; expected one of system, user"),
        ([{"role": ["user"], "content": "a"}], r"message 1 has the role \['user'\]"),
        ([{"role": "user", "content": None}], "message 1: 'content' must be text, not null"),
        ([{"role": "user", "content": 3}], "message 1: 'content' must be text, not a number"),
        ([message("user", "a"), message("system", "b")], "message 2 is a system message"),
        ([message("system", "a"), message("system", "b")], "message 2 is a system message"),
        ([message("user", "a"), message("user", "b")], "message 2 is the second in a row by the"),
    ],
)
def test_each_mistake_has_its_message(messages: object, problem: str) -> None:
    with pytest.raises(UserError, match=f"^my.jsonl, line 3: {problem}"):
        validate_messages(messages, "my.jsonl, line 3")
