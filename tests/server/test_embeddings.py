"""``POST /v1/embeddings`` in OpenAI's form, by OpenAI's own client and by hand."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from worlds import HTTP, MACHINE, Running, running

from lmsmith.encoders import load_embedder
from lmsmith.generation.embedding import Embedder
from lmsmith.server.encoders import Encoders, read_encoders, split_words
from tiny_encoders import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def embedding(folder: Path) -> Iterator[Running]:
    encoders = Encoders(read_encoders([f"bert={folder}"], MACHINE))
    with running(encoders=encoders) as found:
        yield found


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return load_embedder(folder)


def post(server: Running, **body: object) -> tuple[int, dict[str, object]]:
    response = HTTP.post(f"{server.address}/v1/embeddings", json=body)
    return response.status_code, response.json()


def test_openais_client_gets_the_vectors(embedding: Running, embedder: Embedder) -> None:
    texts = ["the dog", "the cat sat on the mat"]
    expected = embedder.embed(texts)
    with openai.OpenAI(base_url=f"{embedding.address}/v1", api_key="none", max_retries=0) as client:
        found = client.embeddings.create(model="bert", input=texts)  # asks for base64
        plain = client.embeddings.create(model="bert", input=texts[0], encoding_format="float")
    assert [each.index for each in found.data] == [0, 1]
    vectors = np.array([each.embedding for each in found.data], np.float32)
    np.testing.assert_allclose(vectors, expected.vectors, rtol=0, atol=1e-6)
    np.testing.assert_allclose(plain.data[0].embedding, expected.vectors[0], rtol=0, atol=1e-6)
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(expected.tokens)
    assert found.model == "bert"


def test_both_encodings_and_token_ids_are_one_vector(
    embedding: Running, embedder: Embedder
) -> None:
    _, plain = post(embedding, input="the dog")
    _, packed = post(embedding, input=["the dog"], encoding_format="base64")
    ids = embedder.tokenizer.encode("the dog")
    _, by_ids = post(embedding, input=ids)
    _, by_lists = post(embedding, input=[ids, ids])
    first = np.array(plain["data"][0]["embedding"], np.float32)  # type: ignore[index]
    raw = base64.b64decode(packed["data"][0]["embedding"])  # type: ignore[index]
    assert np.array_equal(np.frombuffer(raw, "<f4"), first)
    assert by_ids["data"] == plain["data"]
    assert len(by_lists["data"]) == 2  # type: ignore[arg-type]


def test_models_are_listed(embedding: Running) -> None:
    listed = HTTP.get(f"{embedding.address}/v1/models").json()["data"]
    assert [each["id"] for each in listed] == ["parrot", "random", "bert"]
    shown = HTTP.get(f"{embedding.address}/v1/models/bert").json()
    assert (shown["embedding_width"], shown["max_model_len"]) == (24, 48)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "input"),
        ({"input": ""}, 400, "it is empty"),
        ({"input": []}, 400, "an empty list"),
        ({"input": ["a", ""]}, 400, "input[1]: it is empty"),
        ({"input": [[]]}, 400, "input[0]: it is empty"),
        ({"input": ["a", 3]}, 400, "input"),
        ({"input": 3}, 400, "input"),
        ({"input": ["a"] * 2049}, 400, "at most 2048 at once"),
        ({"input": "the cat " * 60}, 400, "the model reads 48"),
        ({"input": "x" * 100_000}, 400, "characters"),
        ({"input": [2, 9]}, 400, "is the control token [CLS]"),
        ({"input": [10**6]}, 400, "the ids are below"),
        ({"input": [-1]}, 400, "input"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "a", "dimensions": 7}, 400, "24 numbers alone"),
        ({"input": "a", "model": "nobody"}, 404, "there is no encoder"),
        ({"input": "a", "model": "parrot"}, 400, "writes text"),
    ],
)
def test_what_is_refused(
    embedding: Running, body: dict[str, object], status: int, words: str
) -> None:
    found, answer = post(embedding, **body)
    assert found == status
    error = answer["error"]
    assert words in error["message"]  # type: ignore[index]
    assert {"message", "type", "param", "code"} == set(error)  # type: ignore[call-overload]


def test_a_full_queue_is_429(folder: Path) -> None:
    with running(encoders=Encoders(read_encoders([f"bert={folder}"], MACHINE), queue=0)) as server:
        status, answer = post(server, input="a")
    assert status == 429
    assert answer["error"]["code"] == "queue_full"  # type: ignore[index]


def test_a_server_without_encoders_says_so(served: Running) -> None:
    status, answer = post(served, input="a")
    assert status == 404
    assert "this server has none" in answer["error"]["message"]  # type: ignore[index]


def test_encoders_are_told_from_the_others(folder: Path) -> None:
    assert split_words([str(folder), f"x={folder}"]) == ([], [str(folder), f"x={folder}"])
