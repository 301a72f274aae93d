"""A classifier as a function of texts, by name or alone, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmsmith.catalogue.classifiers import ReadClassifier
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.classifier_function import ClassifierFunction
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.config import ModelConfig
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine
from tiny_models import TEXTS, random_decoder

TOKENIZER = Tokenizer.train(TEXTS, 300)
SHAPE = ModelConfig(1, 16, 2, 32, TOKENIZER.vocabulary_size)
MACHINE = resolve_machine(MachineConfig(precision="fp32", threads=1))


def function(**settings: object) -> ClassifierFunction:
    config = ClassifierConfig(SHAPE, "tone", labels=("no", "yes"), length=32)
    config = replace(config, **settings)  # type: ignore[arg-type]
    model = Classifier(config, random_decoder(SHAPE)).eval()
    model.initialise_head(torch.Generator().manual_seed(0))
    return ClassifierFunction(ReadClassifier(model, TOKENIZER, Path(), {}), MACHINE)


def test_a_text_has_a_label_and_every_labels_probability() -> None:
    asked = function()
    assert asked([]) == []
    first, second = asked(["the dog ran", {"text": "the cat sat"}])
    assert first["input"] == "the dog ran"
    assert first["label"] == max(first["probabilities"], key=first["probabilities"].get)
    assert sum(first["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    assert second == asked([{"text": "the cat sat"}])[0]
    assert asked.cut == 0
    asked(["the dog " * 40])
    assert asked.cut == 1


def test_control_tokens_are_not_made_by_a_text() -> None:
    asked = function()
    (encoded,) = asked.encode([asked.example("<|extract|> <|end_of_text|>")])
    assert sum(token >= SHAPE.vocabulary_size for token in encoded.sequences[0]) == 2


def test_pairs_and_choices_have_names() -> None:
    pair = function(form="entailment", texts=("premise", "hypothesis"))
    assert pair.fields == ("premise", "hypothesis")
    assert "label" in pair([{"premise": "the dog", "hypothesis": "a dog"}])[0]
    choice = function(form="multiple_choice", labels=(), texts=("q",), answers=("c",))
    (row,) = choice([{"q": "the sky is", "c": ["blue", "a house", "mat"]}])
    assert row["label"] == ["blue", "a house", "mat"][row["place"]]
    assert len(row["probabilities"]) == 3
    number = function(labels=(), mean=3.0)
    assert set(number(["the dog"])[0]) == {"input", "number"}


@pytest.mark.parametrize(
    ("settings", "given", "said"),
    [
        ({"form": "entailment", "texts": ("a", "b")}, "text", "a text alone"),
        ({"form": "entailment", "texts": ("a", "b")}, {"a": "x"}, "'b' is no text"),
        ({}, {"text": " "}, "'text' is empty"),
        ({}, {"text": 3}, "'text' is no text"),
        (
            {"form": "multiple_choice", "labels": (), "texts": ("q",), "answers": ("c",)},
            {"q": "x", "c": ["one"]},
            "no list of two texts",
        ),
    ],
)
def test_an_input_without_the_tasks_texts_is_refused(
    settings: dict[str, object], given: object, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        function(**settings)([given])  # type: ignore[list-item]
