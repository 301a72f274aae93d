"""Classifiers over HTTP: the rows of `lmsmith tasks run`, and bad input that harms nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from worlds import HTTP, TOKENIZER, Running, running

from lmsmith.api import task_function
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import save_model
from lmsmith.server.classifiers import divide_classifiers, read_classifiers
from lmsmith.training.machine import resolve_machine

MACHINE = resolve_machine(MachineConfig(precision="fp32", threads=1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    shape = ModelConfig(1, 16, 2, 32, TOKENIZER.vocabulary_size)
    found = {}
    for name, texts in {"tone": ("text",), "follows": ("premise", "hypothesis")}.items():
        form: Any = "classification" if len(texts) == 1 else "entailment"
        config = ClassifierConfig(shape, name, form, texts, labels=("no", "yes"), length=32)
        model = Classifier(config)
        generator = torch.Generator().manual_seed(5)
        model.decoder.initialise(generator)
        model.initialise_head(generator)
        found[name] = tmp_path_factory.mktemp(name)
        save_model(found[name] / "finetune" / "model", model, TOKENIZER, {})
    return found


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> Iterator[Running]:
    words = [str(folders["tone"]), f"entails={folders['follows']}"]
    assert divide_classifiers([*words, "other"]) == (["other"], words)
    with running(classifiers=read_classifiers(words, MACHINE, [])) as found:
        yield found


def post(served: Running, name: str, body: object) -> httpx.Response:
    headers = {"content-type": "application/json"}
    url = f"{served.address}/v1/tasks/{name}"
    return HTTP.post(url, content=json.dumps(body), headers=headers)


def test_they_are_listed(served: Running) -> None:
    data = HTTP.get(f"{served.address}/v1/tasks").json()["data"]
    found = {each["id"]: each for each in data if each["kind"] == "classifier"}
    assert found["tone"]["labels"] == ["no", "yes"]
    assert found["entails"]["fields"] == ["premise", "hypothesis"]


def test_the_rows_are_those_of_the_command(served: Running, folders: dict[str, Path]) -> None:
    texts = ["I like tea", "rain rain"]
    reply = post(served, "tone", {"inputs": texts}).json()
    expected: Any = task_function("tone", str(folders["tone"]), precision="fp32", threads=1)
    assert reply["results"] == expected(texts)
    assert reply["usage"]["prompt_tokens"] > 4
    pair = {"premise": "I like tea", "hypothesis": "tea"}
    reply = post(served, "entails", {"input": pair}).json()
    assert reply["results"][0]["input"] == pair
    assert reply["results"][0]["label"] in ("no", "yes")


@pytest.mark.parametrize(
    ("name", "body", "param", "said"),
    [
        ("entails", {"input": "tea"}, "input", "a text alone"),
        ("entails", {"inputs": [{"premise": "a"}]}, "inputs[0]", "'hypothesis' is no text"),
        ("tone", {"inputs": ["tea", {"text": 3}]}, "inputs[1]", "'text' is no text"),
        ("tone", {"input": "tea " * 1000}, "input", "characters"),
        ("tone", {}, "input", "give either input"),
        ("tone", {"input": "a", "inputs": ["b"]}, "input", "give either input"),
    ],
)
def test_bad_input_is_refused(
    served: Running, name: str, body: object, param: str, said: str
) -> None:
    response = post(served, name, body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert said in error["message"]
    assert post(served, "tone", {"input": "tea"}).status_code == 200


def test_two_of_one_name_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="two models are called tone"):
        read_classifiers([str(folders["tone"])], MACHINE, ["tone"])
