"""A served translator: the task of its name, in the API's shape, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from worlds import HTTP, LIMITS, MACHINE, TOKENIZER, Running, running

from lmsmith.core.errors import UserError
from lmsmith.generation.translation import Translator
from lmsmith.models.config import EncoderDecoderConfig, ModelConfig
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.models.folder import save_model
from lmsmith.server.translators import ServedTranslator, divide, read_translators

TEXTS = ["I like tea", "", "rain <|endoftext|>"]


def translator() -> Translator:
    shape = ModelConfig(
        1, 16, 2, 24, TOKENIZER.vocabulary_size, norm_position="post", positions="sinusoidal"
    )
    end = TOKENIZER.end_of_text
    model = EncoderDecoder(EncoderDecoderConfig(shape, start_token=end, end_token=end))
    model.initialise(torch.Generator().manual_seed(3))
    return Translator(model.eval(), TOKENIZER, MACHINE)


@pytest.fixture(scope="module")
def translating() -> Iterator[Running]:
    named = {"to-de": ServedTranslator("to-de", translator())}
    with running({}, replace(LIMITS, prompts=4), translators=named) as found:
        yield found


def post(served: Running, body: Any, name: str = "to-de") -> httpx.Response:
    return HTTP.post(f"{served.address}/v1/tasks/{name}", json=body)


def test_texts_are_translated(translating: Running) -> None:
    expected = [
        {"input": each.source, "output": each.text, "score": round(each.score, 6)}
        for each in translator()(TEXTS)
    ]
    response = post(translating, {"inputs": TEXTS})
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["object"], body["task"], body["model"]) == ("task.results", "to-de", "to-de")
    assert body["results"] == expected
    assert body["usage"]["prompt_tokens"] == sum(len(translator().encode(t)) for t in TEXTS)
    (alone,) = post(translating, {"input": TEXTS[0]}).json()["results"]
    score = pytest.approx(expected[0]["score"], abs=1e-4)  # rounding depends on the batch
    assert alone == expected[0] | {"score": score}


def test_it_is_in_the_list_of_tasks(translating: Running) -> None:
    data = HTTP.get(f"{translating.address}/v1/tasks").json()["data"]
    assert data[0]["id"] == "to-de"
    assert data[0]["kind"] == "translation"


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({}, 400, "input", None),
        ({"input": "a", "inputs": ["b"]}, 400, "input", None),
        ({"inputs": ["a"] * 5}, 400, "inputs", None),
        ({"input": "x y " * 30}, 400, "input", "context_length_exceeded"),
        ({"inputs": ["a", "x" * 5000]}, 400, "inputs[1]", "context_length_exceeded"),
    ],
)
def test_what_is_refused(
    translating: Running, body: Any, status: int, param: str, code: str | None
) -> None:
    response = post(translating, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_without_a_language_model_others_are_404(translating: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    response = HTTP.post(f"{translating.address}/v1/chat/completions", json=body)
    assert response.status_code == 404
    assert "no model here writes text" in response.json()["error"]["message"]
    assert HTTP.get(f"{translating.address}/v1/models").json()["data"] == []
    assert HTTP.get(f"{translating.address}/ready").status_code == 200


def test_translators_are_told_from_other_models(tmp_path: Path) -> None:
    save_model(tmp_path / "de" / "model", translator().model, TOKENIZER, {})
    word = f"de={tmp_path / 'de'}"
    assert divide(["gone", word]) == (["gone"], [word])
    (found,) = read_translators([word], MACHINE, []).values()
    assert found.name == "de"
    with pytest.raises(UserError, match="two models are called de"):
        read_translators([word], MACHINE, ["de"])
