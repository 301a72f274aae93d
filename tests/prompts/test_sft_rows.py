"""Every assistant's message is learnt at most once, in windows that fit, after its question."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.corpus.messages import Message
from lmsmith.prompts.chat import encode_turns
from lmsmith.prompts.sft_rows import conversation_windows
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["so it goes, and so it went"], 265)
ROLES = ("user", "assistant")


def marked(lengths: list[int], system: int | None, first: int) -> list[Message]:
    """Messages of given lengths in bytes, each of a letter of its own: it can be found again."""
    messages: list[Message] = []
    if system is not None:
        messages.append({"role": "system", "content": "#" * system})
    for number, length in enumerate(lengths):
        role = ROLES[(number + first) % 2]
        messages.append({"role": role, "content": chr(ord("A") + number) * length})  # type: ignore[typeddict-item]
    return messages


conversations = st.builds(
    marked,
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
    st.one_of(st.none(), st.integers(1, 12)),
    st.integers(0, 1),
)


def piece(message: Message) -> list[int]:
    content = TOKENIZER.encode(message["content"])
    return [TOKENIZER.role_token(message["role"]), *content, TOKENIZER.end_of_turn]


@settings(max_examples=150)
@given(conversations, st.integers(8, 120), st.floats(0, 0.95))
def test_replies_are_learnt_once_after_what_they_answer_or_left_out_and_counted(
    messages: list[Message], limit: int, share: float
) -> None:
    history = int(limit * share)
    counts: Counter[str] = Counter()
    windows = conversation_windows(TOKENIZER, messages, limit, history, counts)
    opening = [TOKENIZER.end_of_text]
    turns = list(messages)
    if turns[0]["role"] == "system":
        opening += piece(turns.pop(0))
    room = limit - len(opening)
    expected, left_out = [], 0
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = len(piece(turns[number - 1])) if number else 0
            if room - before < 2:
                left_out += 1
            else:
                expected.append((piece(turn)[1:], room - before - 1))
    learnt: list[list[int]] = []
    for tokens, is_target in windows:
        assert len(tokens) == len(is_target) <= limit
        assert any(is_target)
        assert tokens[: len(opening)] == opening
        assert not any(is_target[: len(opening)])
        before_is_target = False
        for place, (token, target) in enumerate(zip(tokens, is_target, strict=True)):
            if target and not before_is_target:
                learnt.append([])
                # Right before the assistant's role token stands the end of what it answers.
                if place > len(opening) + 1:
                    assert tokens[place - 2] == TOKENIZER.end_of_turn
                else:
                    number = len(learnt) - 1
                    assert number == 0
                    assert turns[0]["role"] == "assistant"
            if target:
                learnt[-1].append(token)
            before_is_target = target
    assert len(learnt) == len(expected)
    for found, (reply, space) in zip(learnt, expected, strict=True):
        assert found == reply[: len(found)]
        assert len(found) >= min(len(reply), space)
    cut = sum(len(f) < len(reply) for f, (reply, _) in zip(learnt, expected, strict=True))
    assert counts == {
        name: n
        for name, n in (("replies_without_question", left_out), ("replies_cut", cut))
        if n or name in counts
    }


@settings(max_examples=150)
@given(conversations, st.integers(8, 120), st.floats(0, 0.95))
def test_a_window_is_whole_messages_in_order_with_at_most_so_much_history(
    messages: list[Message], limit: int, share: float
) -> None:
    history = int(limit * share)
    turns = [message for message in messages if message["role"] != "system"]
    opening = 1 + sum(len(piece(m)) for m in messages if m["role"] == "system")
    pieces = [piece(turn) for turn in turns]
    end = 0  # the first turn that no window has held yet
    for tokens, is_target in conversation_windows(TOKENIZER, messages, limit, history):
        rest = tokens[opening:]
        first = next(number for number, each in enumerate(pieces) if rest[:2] == each[:2])
        joined: list[int] = []
        last = first
        for number in range(first, len(pieces)):
            joined += pieces[number]
            last = number + 1
            if len(joined) >= len(rest):
                break
        assert joined[: len(rest)] == rest  # consecutive whole messages; only the end may be cut
        targets = is_target[opening:]
        question = len(pieces[first]) if not targets[1] else 0
        if len(joined) > len(rest):
            assert len(tokens) == limit
            # cut only where it is alone, or stands beside what it answers alone
            assert last - first == (2 if question else 1)
        repeated = sum(len(each) for each in pieces[first:end])
        assert repeated <= history or first == end - 1  # what a reply answers, whatever its length
        end = last


def test_a_conversation_that_fits_is_encoded_as_it_is() -> None:
    messages = marked([3, 5, 2, 7], 4, 0)
    opening, turns = encode_turns(TOKENIZER, messages)
    tokens = [*opening, *chain(*turns)]
    ((_, is_target),) = conversation_windows(TOKENIZER, messages, 999, 0)
    assert conversation_windows(TOKENIZER, messages, len(tokens), 10) == [(tokens, is_target)]
    text = [
        TOKENIZER.decode([t], special=True) for t, on in zip(tokens, is_target, strict=True) if on
    ]
    assert "".join(text) == "BBBBB<|end|>DDDDDDD<|end|>"


def test_windows_by_hand() -> None:
    """Four turns of 5 tokens and a limit of 16: three fit, then one with two of history."""
    messages = marked([3, 3, 3, 3], None, 0)
    whole, some, none = (
        [
            TOKENIZER.decode(tokens, special=True).replace("<|endoftext|>", "^")
            for tokens, _ in conversation_windows(TOKENIZER, messages, 16, history)
        ]
        for history in (10, 9, 0)
    )
    turn = "<|{}|>{}<|end|>"
    u1, a1 = turn.format("user", "AAA"), turn.format("assistant", "BBB")
    u2, a2 = turn.format("user", "CCC"), turn.format("assistant", "DDD")
    assert whole == [f"^{u1}{a1}{u2}", f"^{a1}{u2}{a2}"]
    assert some == [f"^{u1}{a1}{u2}", f"^{u2}{a2}"]
    assert none == [f"^{u1}{a1}{u2}", f"^{u2}{a2}"]  # what it answers is always in sight


def test_a_reply_longer_than_the_limit_loses_its_end_and_does_not_learn_to_stop() -> None:
    messages = marked([2, 40, 2, 2], None, 0)
    windows = conversation_windows(TOKENIZER, messages, 20, 8)
    cut, is_target = windows[0]
    assert len(cut) == 20
    assert TOKENIZER.end_of_turn not in [t for t, on in zip(cut, is_target, strict=True) if on]
    assert TOKENIZER.decode(windows[1][0]).endswith("DD")


def test_nothing_of_use_gives_no_window() -> None:
    assert conversation_windows(TOKENIZER, marked([4], None, 0), 50, 10) == []
    assert conversation_windows(TOKENIZER, marked([4, 4], 60, 0), 50, 10) == []
    assert conversation_windows(TOKENIZER, [], 50, 10) == []


def test_a_reply_whose_question_does_not_fit_is_left_out_and_counted() -> None:
    """Inputs of this kind: ../shared/faults/05-prompt-fills-context."""
    counts: Counter[str] = Counter()
    messages = marked([30, 3, 3, 3], None, 0)
    windows = conversation_windows(TOKENIZER, messages, 20, 10, counts)
    ((tokens, is_target),) = windows
    learnt = [token for token, on in zip(tokens, is_target, strict=True) if on]
    assert TOKENIZER.decode(tokens) == "BBBCCCDDD"
    assert TOKENIZER.decode(learnt) == "DDD"
    assert counts["replies_without_question"] == 1


def test_a_question_longer_than_the_history_is_repeated_before_its_reply() -> None:
    counts: Counter[str] = Counter()
    windows = conversation_windows(TOKENIZER, marked([10, 12], None, 0), 20, 4, counts)
    ((tokens, is_target),) = windows
    assert TOKENIZER.decode(tokens) == "A" * 10 + "B" * 6
    assert sum(is_target) == 6
    assert counts == {"replies_cut": 1}
