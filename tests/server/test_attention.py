"""POST /api/attention: pictures of all heads, the numbers of one, and what is refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import torch
from worlds import CONTEXT, HTTP, RANDOM, TOKENIZER, Running, said_by, words

from lmsmith.prompts import encode_prompt
from lmsmith.server.api.attention import thumbnails
from lmsmith.server.stream import token_texts

TALK = [*said_by("I like tea"), {"role": "assistant", "content": "and rain"}]


def look(served: Running, status: int = 200, **body: Any) -> Any:
    body = {"model": "random", "messages": TALK, **body}
    answer = HTTP.post(f"{served.address}/api/attention", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def tokens_of_talk() -> list[int]:
    return [*encode_prompt(TOKENIZER, TALK[:1]).tokens, *TOKENIZER.encode("and rain")]


def test_the_numbers_of_a_head_are_the_models(served: Running) -> None:
    found = look(served, layer=1, head=2)
    expected = RANDOM.attention_weights(tokens_of_talk(), 999)[1][2]
    assert found["count"] == len(expected) == len(found["tokens"])
    assert "".join(found["tokens"]).endswith("and rain")
    for place, row in enumerate(found["weights"]):
        assert len(row) == place + 1
        torch.testing.assert_close(
            torch.tensor(row), expected[place, : place + 1], atol=6e-5, rtol=0
        )
    assert found["before"] == [0.0] * len(expected)


def test_a_character_of_several_tokens_stands_at_the_first_of_them(served: Running) -> None:
    written = TOKENIZER.encode("tea 你🙂")
    assert len(written) > len("tea 你🙂")
    talk = [*TALK[:1], {"role": "assistant", "content": "tea 你🙂"}]
    shown = look(served, messages=talk, layer=0, head=0)["tokens"][-len(written) :]
    whole = [text for text in shown if not text.startswith("bytes:")]
    assert "".join(whole) == "tea 你🙂"
    assert whole[-1] == "🙂"
    body = {"model": "random", "prompt": "tea 你🙂", "add_special_tokens": False}
    found = HTTP.post(f"{served.address}/tokenize", json={**body, "return_token_strs": True})
    assert found.json()["token_strs"] == shown


def test_what_makes_no_character_keeps_its_bytes() -> None:
    start = TOKENIZER.encode("你")
    assert token_texts(TOKENIZER, start)[0] == "你"
    assert token_texts(TOKENIZER, start[:-1])[0].startswith("bytes:")
    broken = token_texts(TOKENIZER, [*start[:-1], *TOKENIZER.encode("t"), *start])
    assert broken[0].startswith("bytes:")
    assert "你" in broken


def test_pictures_of_all_heads(served: Running) -> None:
    found = look(served)
    size, count = found["size"], len(tokens_of_talk())
    assert (found["layers"], found["heads"], size) == (2, 4, min(32, count))
    pixels = torch.frombuffer(bytearray(base64.b64decode(found["thumbnails"])), dtype=torch.uint8)
    weights = torch.cat(RANDOM.attention_weights(tokens_of_talk(), count))
    assert torch.equal(pixels.view(8, size, size), thumbnails(weights, count))


def test_a_long_talk_shows_its_last_tokens_and_what_went_to_earlier_ones(served: Running) -> None:
    found = look(served, messages=said_by(words(200)), layer=0, head=0)
    assert found["count"] > len(found["tokens"]) == 128
    for row, before in zip(found["weights"], found["before"], strict=True):
        assert sum(row) + before == pytest.approx(1, abs=0.01)
    assert max(found["before"]) > 0.1


def test_a_picture_shows_the_largest_weight_of_each_point() -> None:
    weights = torch.zeros(1, 128, 200)
    weights[0, 127, 199], weights[0, 0, 72], weights[0, 5, 3] = 1.0, 0.25, 1.0
    picture = thumbnails(weights, 128)
    assert picture.shape == (1, 32, 32)
    assert (picture[0, 31, 31], picture[0, 0, 0]) == (255, 128)
    assert int((picture > 0).sum()) == 2


def test_mistakes(served: Running) -> None:
    assert "0 to 1" in look(served, 400, layer=2, head=0)["error"]["message"]
    assert "both" in look(served, 400, layer=1)["error"]["message"]
    long = look(served, 400, messages=said_by(words(CONTEXT)))
    assert long["error"]["code"] == "context_length_exceeded"
    look(served, 404, model="none")
    look(served, 400, messages=[])
