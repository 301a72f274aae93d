"""Prompts are spread over conversations, fit the context, and end where a reply follows."""

from __future__ import annotations

from collections import Counter

from lmsmith.corpus.rows import Conversation
from lmsmith.prompts import encode_prompt
from lmsmith.prompts.selection import PromptAndReply, prompt_room, prompts_warning, select_prompts
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["I think you like tea, and so do I. what about you?"] * 4, 280)


def select(
    conversations: list[Conversation], most: int, per_conversation: int
) -> list[PromptAndReply]:
    return select_prompts(
        conversations,
        TOKENIZER,
        43,
        most=most,
        per_conversation=per_conversation,
        reply_tokens=(1, 20),
    )


def test_both_sides_of_a_conversation_fall_into_one_split() -> None:
    messages = [
        {"role": role, "content": "I think you like tea"} for role in ("user", "assistant") * 2
    ]
    both = [Conversation(f"{n}{side}", messages) for n in range(20) for side in ("", "/other-side")]
    prompts = select(both, most=100, per_conversation=2)
    assert len(prompts) == 80
    assert {each.root for each in prompts} == {str(n) for n in range(20)}


def test_prompts_are_spread_over_a_conversation() -> None:
    roles = ["user", "assistant"] * 20
    messages = [{"role": role, "content": f"tea {n}"} for n, role in enumerate(roles)]
    chosen = select([Conversation("x", messages)], most=9, per_conversation=4)
    turns = sorted(int(each.id.partition("#")[2]) for each in chosen)
    assert turns == [5, 15, 25, 35]


def test_prompts_leave_room_and_keep_the_system_message() -> None:
    messages = [{"role": "system", "content": "tea"}] + [
        {"role": ("user", "assistant")[n % 2], "content": f"what about you? {n}"} for n in range(30)
    ]
    (each,) = select([Conversation("x", messages)], most=1, per_conversation=1)
    turn = int(each.id.partition("#")[2])
    assert each.reply == messages[turn]["content"]
    assert each.reply_tokens == len(TOKENIZER.encode(each.reply))
    assert len(each.tokens) <= 64 - 21
    assert each.tokens == encode_prompt(TOKENIZER, each.prompt).tokens
    assert each.prompt[0] == messages[0]
    assert each.prompt[1:] == messages[turn - len(each.prompt) + 1 : turn]
    assert 1 < len(each.prompt) < turn


def test_no_prompt_without_a_user_before_it_or_with_one_that_is_too_long() -> None:
    def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in turns]

    conversations = [
        Conversation("opens", said(("assistant", "tea"), ("user", "so"))),
        Conversation("system", said(("system", "tea"), ("assistant", "so"), ("user", "I"))),
        Conversation("long", said(("user", "what about you? " * 30), ("assistant", "tea"))),
        Conversation("wordy", said(("user", "tea"), ("assistant", "so, " * 30))),
        Conversation("silent", said(("user", "tea"), ("assistant", ""))),
        Conversation("good", said(("user", "tea"), ("assistant", "so"))),
    ]
    assert [each.id for each in select(conversations, most=9, per_conversation=9)] == ["good#1"]


def test_the_cap_takes_the_same_prompts_whatever_the_order() -> None:
    conversations = [
        Conversation(
            str(n), [{"role": "user", "content": "tea"}, {"role": "assistant", "content": "so"}]
        )
        for n in range(30)
    ]
    few = select(conversations, most=7, per_conversation=1)
    assert few == select(conversations[::-1], most=7, per_conversation=1)
    assert few == select(conversations, most=30, per_conversation=1)[:7]


def test_a_prompt_alone_is_taken_whatever_the_reply_and_what_is_left_out_is_counted() -> None:
    user = {"role": "user", "content": "tea"}
    conversations = [
        Conversation("wordy", [user, {"role": "assistant", "content": "so, " * 90}]),
        Conversation("silent", [user, {"role": "assistant", "content": ""}]),
        Conversation("open", [user, {"role": "assistant", "content": "so"}, user]),
        Conversation("long", [{"role": "user", "content": "what about you? " * 30}]),
        Conversation("empty", [{"role": "user", "content": " "}]),
    ]
    counts: Counter[str] = Counter()
    found = select_prompts(conversations, TOKENIZER, 43, most=9, per_conversation=9, counts=counts)
    assert sorted(each.id for each in found) == ["open#1", "open#3", "silent#1", "wordy#1"]
    assert counts == {"turns": 6, "too_long": 1, "empty": 1, "reply_length": 0}
    told = prompts_warning(counts, 43)
    assert told == (
        "2 of 6 prompts left out: 1 whose last message does not fit 43 tokens or is refused by the "
        "chat template, 1 without a word"
    )
    assert prompts_warning(Counter(turns=6), 43) == ""


def test_room_of_a_prompt() -> None:
    assert prompt_room(0, 20, 64) == 43
    assert prompt_room(30, 20, 64) == 30
    assert prompt_room(60, 20, 64) == 43
