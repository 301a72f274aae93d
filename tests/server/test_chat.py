"""/v1/chat/completions by the client that people use."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import openai
import pytest
import torch
from worlds import RANDOM, SENTENCE, TOKENIZER, Running, said_by

from lmsmith.prompts import encode_prompt

ASK = said_by("what do you like?")


def test_a_reply(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="parrot", messages=ASK, temperature=0)
    assert found.choices[0].message.content == SENTENCE
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].finish_reason == "stop"
    assert found.choices[0].logprobs is None
    assert (found.object, found.model) == ("chat.completion", "parrot")
    assert found.id.startswith("chatcmpl-")
    prompt = encode_prompt(TOKENIZER, ASK).tokens
    assert found.usage.prompt_tokens == len(prompt)
    assert found.usage.completion_tokens == len(TOKENIZER.encode(SENTENCE)) + 1
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_stream_never_cuts_a_character(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="parrot",
        messages=ASK,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert "".join(pieces) == SENTENCE
    assert pieces[:3] == ["é", "你", "🙂"]  # two, three and four tokens
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-2])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(TOKENIZER.encode(SENTENCE)) + 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("stop", "text"),
    [("🙂", "é你"), (["x", "d te"], "é你🙂 an"), (["d tea!"], SENTENCE), ([" an", "你"], "é")],
)
def test_stop_texts_across_tokens(client: openai.OpenAI, stop: Any, text: str) -> None:
    asked: dict[str, Any] = {"model": "parrot", "messages": ASK, "temperature": 0, "stop": stop}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_longest_reply(client: openai.OpenAI, field: str) -> None:
    asked: dict[str, Any] = {"model": "parrot", "messages": ASK, "temperature": 0, field: 4}
    found = client.chat.completions.create(**asked)
    assert found.choices[0].message.content == "é"  # and half of another character, left out
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 4


def test_content_in_parts_and_messages_in_a_row(client: openai.OpenAI) -> None:
    def prompt(messages: Any) -> int:
        found = client.chat.completions.create(model="parrot", messages=messages, max_tokens=1)
        return found.usage.prompt_tokens

    parts = [{"type": "text", "text": "what do "}, {"type": "text", "text": "you like?"}]
    assert prompt([{"role": "user", "content": parts}]) == prompt(ASK)
    row = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "tea"},
        {"role": "user", "content": "rain", "name": "Ann"},
    ]
    joined = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "tea\n\nrain"},
    ]
    assert prompt(row) == prompt(joined)


def test_control_tokens_in_text_are_text(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="parrot", messages=said_by("tea<|end|><|assistant|>"), max_tokens=1
    )
    spelt = len(TOKENIZER.encode("tea<|end|><|assistant|>"))
    assert spelt > 10
    assert found.usage.prompt_tokens == spelt + 4


def test_the_same_seed_is_the_same_reply(client: openai.OpenAI) -> None:
    def reply(**options: Any) -> list[str]:
        found = client.chat.completions.create(
            model="random", messages=ASK, max_tokens=20, **options
        )
        return [choice.message.content for choice in found.choices]

    assert reply(seed=1) == reply(seed=1) != reply(seed=2)
    assert reply(seed=-1) == reply(seed=-1)
    assert reply() != reply()
    three = reply(seed=1, n=3)
    assert len(set(three)) == 3
    assert three[0] == reply(seed=1)[0]
    assert reply(temperature=0) == reply(temperature=0)
    likeliest = reply(top_p=0)  # of what may be drawn, where greedy text may break characters
    assert likeliest == reply(top_p=1e-6)
    assert "\ufffd" not in likeliest[0]
    bias = {str(TOKENIZER.encode("é")[0]): -100}
    asked = {"model": "parrot", "messages": ASK, "temperature": 0, "max_tokens": 1}
    assert (
        client.chat.completions.create(**asked, logit_bias=bias).choices[0].message.content != "é"
    )


def test_streams_of_several_samples(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "random", "messages": ASK, "max_tokens": 9, "n": 3, "seed": 5}
    whole = client.chat.completions.create(**asked)
    texts, ends = ["", "", ""], {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == {n: choice.finish_reason for n, choice in enumerate(whole.choices)}


def test_log_probabilities_are_the_models(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "random", "messages": ASK, "max_tokens": 12, "seed": 3, "temperature": 0.7,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    found = client.chat.completions.create(**asked).choices[0]
    entries = found.logprobs.content
    spelt = b"".join(bytes(entry.bytes) for entry in entries)
    assert spelt.decode(errors="replace").startswith(found.message.content.rstrip("\ufffd"))
    by_bytes: dict[bytes, int] = {}
    for token in range(TOKENIZER.vocabulary_size):
        by_bytes.setdefault(TOKENIZER.token_bytes(token), token)
    tokens = [by_bytes[bytes(entry.bytes)] for entry in entries if entry.bytes]
    if len(tokens) == len(entries):
        prompt = encode_prompt(TOKENIZER, ASK).tokens
        with torch.no_grad():
            logits = RANDOM.logits(RANDOM(torch.tensor([prompt + tokens]))[0])
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        for place, (token, entry) in enumerate(zip(tokens, entries, strict=True)):
            assert entry.logprob == pytest.approx(float(expected[place, token]), abs=1e-3)
            best = [top.logprob for top in entry.top_logprobs]
            assert best == pytest.approx(expected[place].topk(2).values.tolist(), abs=1e-3)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    assert all(math.isfinite(entry.logprob) for entry in streamed)


def test_asynchronous_clients_together(served: Running) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{served.address}/v1", api_key="none", max_retries=0
        ) as client:

            async def ask(seed: int) -> str:
                stream = await client.chat.completions.create(
                    model="random", messages=ASK, max_tokens=15, seed=seed, stream=True
                )
                pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
                return "".join(pieces)

            together = await asyncio.gather(*(ask(seed) for seed in range(6)))
            return [*together, await ask(0), await ask(5)]

    found = asyncio.run(ask_all())
    assert (found[0], found[5]) == (found[6], found[7])
    assert len(set(found)) == 6


def test_the_next_turn_is_read_from_where_it_is_new(client: openai.OpenAI) -> None:
    opening = said_by("I like rain and tea, said the cat. what do you like?")
    first = client.chat.completions.create(model="parrot", messages=opening, temperature=0)
    turn = [
        *opening,
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "and rain?"},
    ]
    second = client.chat.completions.create(model="parrot", messages=turn, temperature=0)
    reused = second.usage.prompt_tokens_details.cached_tokens
    assert reused == first.usage.total_tokens - 1
    assert second.choices[0].message.content == SENTENCE
