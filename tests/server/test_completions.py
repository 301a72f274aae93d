"""/v1/completions, the tokenizer's routes, models and metrics."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import torch
from worlds import CONTEXT, HTTP, RANDOM, SENTENCE, TOKENIZER, Running, running

from lmsmith.models.config import ModelConfig
from tiny_models import random_decoder

TEXT = "what do you like? é你🙂"
TOKENS = TOKENIZER.encode(TEXT)


def expected_log_probs(tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of what follows each token, (time, vocabulary), by the plain model."""
    with torch.no_grad():
        return RANDOM.logits(RANDOM(torch.tensor([tokens]))[0]).log_softmax(-1)


def test_texts_tokens_and_lists_of_both(client: openai.OpenAI) -> None:
    def complete(prompt: Any, **options: Any) -> list[str]:
        asked = {"model": "random", "max_tokens": 8, "temperature": 0, **options}
        found = client.completions.create(prompt=prompt, **asked)
        assert [choice.index for choice in found.choices] == list(range(len(found.choices)))
        return [choice.text for choice in found.choices]

    start = TOKENIZER.start_of_text
    (one,) = complete(TEXT)
    assert complete([start, *TOKENS]) == [one]
    assert complete([TEXT, "tea", TEXT]) == [one, *complete("tea"), one]
    assert complete([[start, *TOKENS], TOKENS]) == [one, *complete(TOKENS)]
    assert complete(TEXT, echo=True) == [TEXT + one]
    assert len(complete([TEXT, "tea"], n=3, temperature=1)) == 6
    streamed = client.completions.create(
        model="random", prompt=TEXT, max_tokens=8, temperature=0, stream=True, echo=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == TEXT + one


def test_each_prompt_and_sample_has_chance_of_its_own(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "random", "max_tokens": 8, "seed": 4}
    found = client.completions.create(prompt=["tea", "tea"], n=2, **asked)
    assert len({choice.text for choice in found.choices}) == 4
    alone = client.completions.create(prompt="tea", n=2, **asked)
    assert [c.text for c in alone.choices] == [c.text for c in found.choices[:2]]


@pytest.mark.parametrize("longest", [0, 1, 3])
def test_echo_scores_a_prompt_exactly(client: openai.OpenAI, longest: int) -> None:
    """As lm-eval asks: token ids in, the prompt's log-probabilities and one token more out."""
    found = client.completions.create(
        model="random", prompt=TOKENS, max_tokens=longest, echo=True, logprobs=1, temperature=0
    )
    (choice,) = found.choices
    shown = choice.logprobs
    assert len(shown.tokens) == len(TOKENS) + longest
    assert shown.token_logprobs[0] is None
    assert shown.top_logprobs[0] is None
    expected = expected_log_probs(TOKENS)
    for place, token in enumerate(TOKENS[1:]):
        value = pytest.approx(float(expected[place, token]), abs=1e-3)
        assert shown.token_logprobs[place + 1] == value
        (best,) = shown.top_logprobs[place + 1].values()
        assert best == pytest.approx(float(expected[place].max()), abs=1e-3)
    assert shown.tokens[len(TOKENS) - 1].startswith("bytes:\\x")
    assert choice.text.startswith(TEXT)
    assert found.usage.completion_tokens == longest
    whole = [n for n, token in enumerate(shown.tokens[:10]) if not token.startswith("bytes:")]
    for n in whole:
        offset = shown.text_offset[n]
        assert choice.text[offset : offset + len(shown.tokens[n])] == shown.tokens[n]


def test_a_text_is_scored_from_its_first_token(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="random", prompt=TEXT, max_tokens=0, echo=True, logprobs=0
    )
    shown = found.choices[0].logprobs
    expected = expected_log_probs([TOKENIZER.start_of_text, *TOKENS])
    chosen = [float(expected[place, token]) for place, token in enumerate(TOKENS)]
    assert shown.token_logprobs == pytest.approx(chosen, abs=1e-3)
    assert found.choices[0].text == TEXT


def test_prompts_that_are_refused(client: openai.OpenAI) -> None:
    def refused(**asked: Any) -> str:
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(model="random", **asked)
        return error.value.message

    assert "empty" in refused(prompt=[[]])
    assert "token id" in refused(prompt=[TOKENIZER.vocabulary_size])
    assert "maximum context length" in refused(prompt=[5] * CONTEXT)
    assert "suffix" in refused(prompt="x", suffix="y")
    assert "best_of" in refused(prompt="x", best_of=3)
    assert "echo" in refused(prompt="x", max_tokens=0)
    assert "at most 256" in refused(prompt=["x"] * 257)


def test_the_tokenizer(served: Running) -> None:
    def post(path: str, **body: Any) -> dict[str, Any]:
        response = HTTP.post(f"{served.address}{path}", json=body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    found = post("/tokenize", prompt=TEXT, add_special_tokens=False, return_token_strs=True)
    assert found["tokens"] == TOKENS
    assert found["count"] == len(TOKENS) == len(found["token_strs"])
    assert found["max_model_len"] == CONTEXT
    assert post("/tokenize", prompt=TEXT)["tokens"] == [TOKENIZER.start_of_text, *TOKENS]
    assert post("/detokenize", tokens=TOKENS) == {"prompt": TEXT}
    turn = post("/tokenize", messages=[{"role": "user", "content": "tea"}])["tokens"]
    assert turn[-1] == TOKENIZER.role_token("assistant")
    assert post("/detokenize", tokens=turn) == {
        "prompt": "<|endoftext|><|user|>tea<|end|><|assistant|>"
    }
    info = HTTP.get(f"{served.address}/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>"
    # What lm-eval asks for an id; the same name inside a text is text.
    asked = post("/tokenize", prompt=info["eos_token"], add_special_tokens=False)
    assert asked["tokens"] == [TOKENIZER.end_of_text]
    longer = post("/tokenize", prompt="<|endoftext|> ", add_special_tokens=False)["tokens"]
    assert TOKENIZER.end_of_text not in longer
    bad = HTTP.post(f"{served.address}/detokenize", json={"tokens": [99999]})
    assert bad.status_code == 400
    assert HTTP.post(f"{served.address}/tokenize", json={}).status_code == 400


def test_special_tokens_are_added_as_in_vllm(served: Running) -> None:
    """By default before a text, not before a conversation; the client may ask otherwise."""

    def read(path: str, **body: Any) -> int:
        asked = {"model": "random", "max_tokens": 1, **body}
        answer = HTTP.post(f"{served.address}/v1/{path}", json=asked)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens"])

    def tokens(**body: Any) -> list[int]:
        found: list[int] = HTTP.post(f"{served.address}/tokenize", json=body).json()["tokens"]
        return found

    start = [*TOKENIZER.text_start]
    assert start == [TOKENIZER.end_of_text]
    assert read("completions", prompt=TEXT) == len(TOKENS) + 1
    assert read("completions", prompt=TEXT, add_special_tokens=True) == len(TOKENS) + 1
    assert read("completions", prompt=TEXT, add_special_tokens=False) == len(TOKENS)
    empty = {"model": "random", "prompt": "", "add_special_tokens": False}
    refused = HTTP.post(f"{served.address}/v1/completions", json=empty)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    talk = [{"role": "user", "content": TEXT}]
    plain = tokens(messages=talk)
    assert tokens(messages=talk, add_special_tokens=False) == plain
    assert tokens(messages=talk, add_special_tokens=True) == [*start, *plain]
    assert read("chat/completions", messages=talk) == len(plain)
    assert read("chat/completions", messages=talk, add_special_tokens=True) == len(plain) + 1
    echoed = {"prompt": TEXT, "echo": True, "logprobs": 0, "max_tokens": 0}
    for adds in (True, False):
        body = {"model": "random", **echoed, "add_special_tokens": adds}
        (choice,) = HTTP.post(f"{served.address}/v1/completions", json=body).json()["choices"]
        assert choice["text"] == TEXT
        assert len(choice["logprobs"]["tokens"]) == len(TOKENS)
        assert (choice["logprobs"]["token_logprobs"][0] is None) == (not adds)
    assert HTTP.get(f"{served.address}/tokenizer_info").json()["add_bos_token"] is True


def test_models_side_by_side(client: openai.OpenAI, served: Running) -> None:
    assert [model.id for model in client.models.list()] == ["parrot", "random"]
    assert client.models.retrieve("random").owned_by == "lmsmith"
    messages = [{"role": "user", "content": "what do you like?"}]
    said = {
        name: client.chat.completions.create(
            model=name, messages=messages, temperature=0, max_tokens=30
        )
        .choices[0]
        .message.content
        for name in ("parrot", "random")
    }
    assert said["parrot"] == SENTENCE
    assert said["random"] != SENTENCE


def test_metrics_count(served: Running, client: openai.OpenAI) -> None:
    def metric(name: str) -> float:
        text = HTTP.get(f"{served.address}/metrics").text
        (line,) = [each for each in text.splitlines() if each.startswith(name)]
        return float(line.split()[-1])

    names = [
        f'lmsmith_{name}{{model="random"}}'
        for name in ("prompt_tokens_total", "generated_tokens_total")
    ]
    before = [metric(name) for name in names]
    firsts = metric('lmsmith_time_to_first_token_seconds_count{model="random"}')
    client.completions.create(model="random", prompt=[5, 6, 7], max_tokens=4, temperature=0)
    after = [metric(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 4]
    assert metric('lmsmith_time_to_first_token_seconds_count{model="random"}') == firsts + 1
    assert metric('lmsmith_replies_active{model="random"}') == 0
    assert HTTP.get(f"{served.address}/ready").json() == {"status": "ok"}


def test_tokens_told_together_stay_events_of_their_own(served: Running) -> None:
    """Most come in one piece; each has its own text and probability, and the last one the end."""
    asked = {
        "model": "parrot", "prompt": [TOKENIZER.role_token("assistant")], "max_tokens": 8,
        "temperature": 0, "logprobs": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    events = []
    for line in HTTP.post(f"{served.address}/v1/completions", json=asked).text.split("\n"):
        if line.startswith("data: {"):
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            events.append(choice)
    texts = [choice["text"] for choice in events]
    spoken = TOKENIZER.encode(SENTENCE)[:8]
    assert "".join(texts) == TOKENIZER.decode(spoken).rstrip("\ufffd")
    assert [choice["finish_reason"] for choice in events] == [None] * (len(events) - 1) + ["length"]
    told = [len(choice["logprobs"]["tokens"]) for choice in events]
    assert sum(told) == 8
    # A character split across tokens comes with the last of them.
    whole = [number for number in range(1, 9) if "\ufffd" not in TOKENIZER.decode(spoken[:number])]
    assert told[: len(whole)] == [b - a for a, b in zip([0, *whole], whole, strict=False)]
    offsets = [choice["logprobs"]["text_offset"][0] for choice in events[: len(whole)]]
    starts = [len(TOKENIZER.decode(spoken[:number])) for number in [0, *whole[:-1]]]
    assert offsets == starts


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_probabilities_are_those_of_the_whole(client: openai.OpenAI, echo: bool) -> None:
    """Two samples of a model that often stops in the midst of a character."""
    asked: dict[str, Any] = {
        "model": "random", "prompt": TEXT, "max_tokens": 40, "seed": 5, "n": 2, "logprobs": 2,
        "echo": echo, "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    whole = client.completions.create(**asked)
    streamed: list[dict[str, list[Any]]] = [{}, {}]
    for chunk in client.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        assert choice.logprobs is not None
        for name, values in choice.logprobs.model_dump().items():
            streamed[choice.index].setdefault(name, []).extend(values)
    for choice in whole.choices:
        assert choice.logprobs is not None
        expected = choice.logprobs.model_dump()
        found = streamed[choice.index]
        for name in ("tokens", "text_offset", "top_logprobs"):
            assert found[name] == expected[name]
        assert found["token_logprobs"] == pytest.approx(expected["token_logprobs"], abs=1e-5)
        for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
            if not token.startswith("bytes:") and token not in TOKENIZER.control_tokens.values():
                # Bytes before it that turn out to be no character are U+FFFD with it.
                assert choice.text[offset:].lstrip("\ufffd").startswith(token)


def test_ids_without_a_token_are_never_written_and_a_bias_on_them_is_refused() -> None:
    known = TOKENIZER.vocabulary_size
    padded = random_decoder(ModelConfig(1, 16, 2, 64, known + 9), 1)
    with torch.no_grad():  # makes them the likeliest everywhere
        padded.final_norm.bias.fill_(1.0)
        padded.token_embedding.weight[known:] = 3.0
    with running({"padded": padded}) as found:

        def complete(**options: Any) -> Any:
            asked = {"prompt": "tea", "max_tokens": 20, "logprobs": 5, **options}
            return HTTP.post(f"{found.address}/v1/completions", json=asked)

        for temperature in (0, 2):
            log_probs = complete(temperature=temperature).json()["choices"][0]["logprobs"]
            assert all(log_probs["tokens"])
            assert all("" not in top for top in log_probs["top_logprobs"])
        for token in (known, known + 8, known + 9):
            refused = complete(logit_bias={str(token): 100})
            assert refused.status_code == 400
            assert "logit_bias" in refused.json()["error"]["message"]
            assert str(token) in refused.json()["error"]["message"]
            assert refused.json()["error"]["param"] == "logit_bias"
        chat = {"messages": [{"role": "user", "content": "tea"}], "logit_bias": {str(known): 1}}
        assert HTTP.post(f"{found.address}/v1/chat/completions", json=chat).status_code == 400
        assert complete().status_code == 200
