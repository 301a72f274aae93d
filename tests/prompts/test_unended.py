"""Templates that write nothing after the last reply, or after any: replies are taught to end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from lmsmith.corpus.messages import Message
from lmsmith.prompts.sft_rows import conversation_windows
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.import_tokenizer import import_tokenizer

OWN = Tokenizer.train(["Question: what is it? Answer: it is a dog."] * 4, 300)
EOS, USER = "<|endoftext|>", "<|user|>"
ALPACA = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
GLM = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TALK: list[Message] = [
    {"role": role, "content": content}
    for role, content in zip(("user", "assistant") * 3, "abcdef", strict=True)
]


def imported(jinja: str, stops: Sequence[str] = ()) -> Tokenizer:
    return import_tokenizer(OWN.description, variables={"eos_token": EOS}, jinja=jinja, stops=stops)


def learnt(tokenizer: Tokenizer, window: tuple[list[int], list[bool]]) -> str:
    tokens, is_target = window
    kept = [token for token, on in zip(tokens, is_target, strict=True) if on]
    return tokenizer.decode(kept, special=True)


@pytest.mark.parametrize("jinja", [ALPACA, GLM])
def test_the_last_reply_ends_with_the_end_of_turn(jinja: str) -> None:
    tokenizer = imported(jinja)
    assert tokenizer.control_tokens[tokenizer.end_of_turn] == EOS
    ((tokens, is_target),) = conversation_windows(tokenizer, TALK[:2], 99, 0)
    assert learnt(tokenizer, (tokens, is_target)) == f"b{EOS}"
    assert tokens[-1] == tokenizer.end_of_turn
    assert is_target[-1]
    # A conversation that the user ends is as the template writes it.
    assert conversation_windows(tokenizer, TALK[:3], 99, 0)[-1][0].count(tokens[-1]) == 1


@pytest.mark.parametrize("limit", [60, 300])
def test_every_reply_is_taught_to_end_in_a_window_of_its_own(limit: int) -> None:
    tokenizer = imported(ALPACA)
    counts: Counter[str] = Counter()
    windows = conversation_windows(tokenizer, TALK, limit, limit // 2, counts)
    assert [learnt(tokenizer, window) for window in windows] == [f"{c}{EOS}" for c in "bdf"]
    assert all(len(tokens) <= limit for tokens, _ in windows)
    assert sum(counts.values()) == 0
    # Earlier turns stand before it as the template writes them: nothing ends them there.
    assert windows[-1][0].count(tokenizer.end_of_turn) == 1


def test_the_next_users_mark_ends_a_reply_where_the_model_stops_at_it() -> None:
    tokenizer = imported(GLM, stops=[USER])
    assert tokenizer.control_tokens[tokenizer.end_of_turn] == USER
    ((tokens, is_target),) = conversation_windows(tokenizer, TALK, 99, 40)
    assert learnt(tokenizer, (tokens, is_target)) == f"b{USER}d{USER}f{USER}"


def test_a_reply_that_is_cut_does_not_learn_to_end() -> None:
    tokenizer = imported(ALPACA)
    messages: list[Message] = [TALK[0], {"role": "assistant", "content": "x" * 90}]
    counts: Counter[str] = Counter()
    ((tokens, is_target),) = conversation_windows(tokenizer, messages, 60, 20, counts)
    assert tokenizer.end_of_turn not in tokens
    assert any(is_target)
    assert counts["replies_cut"] == 1
    long = [{"role": "user", "content": "x" * 90}, TALK[1]]
    assert conversation_windows(tokenizer, long, 60, 20, counts) == []
    assert counts["replies_without_question"] == 1


def test_replies_that_the_template_leaves_out_are_counted() -> None:
    tokenizer = imported("{{ messages[0]['content'] }}")
    counts: Counter[str] = Counter()
    assert conversation_windows(tokenizer, TALK, 60, 20, counts) == []
    assert counts["replies_not_written"] == 3
