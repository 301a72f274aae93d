"""Classifiers exported as …ForSequenceClassification: transformers' tokens and logits are ours.

Random weights, float32; logits within 1e-4.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmsmith.catalogue.classifiers import ReadClassifier, find_classifier, read_classifier
from lmsmith.catalogue.export import export_classifier
from lmsmith.core.errors import UserError
from lmsmith.corpus.labelled.task import Example
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.classification import encode_examples, pad_examples

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import styles

transformers = pytest.importorskip("transformers")

TOKENIZER = Tokenizer.train(["hello there, how are you? I am well, thank you. 你好 🙂"] * 4, 300)
FAMILIES = {
    "gpt1": ("OpenAIGPT", styles.STYLES["gpt1"]),
    "gpt2": ("GPT2", styles.GPT2),
    "llama": ("Llama", styles.LLAMA),
    "llama, untied": ("Llama", styles.STYLES["one shared head, untied"]),
}


def made(shape: ModelConfig, folder: Path, **settings: object) -> ReadClassifier:
    shape = replace(shape, vocabulary_size=TOKENIZER.vocabulary_size + 2, context=64)
    config = ClassifierConfig(shape, "tone", labels=("no", "yes", "maybe"), length=64)
    config = replace(config, **settings)  # type: ignore[arg-type]
    model = Classifier(config, styles.random_decoder(shape)).eval()
    model.initialise_head(torch.Generator().manual_seed(4))
    save_model(folder / "finetune" / "model", model, TOKENIZER, {})
    return read_classifier(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_same_tokens_and_logits(family: str, tmp_path: Path) -> None:
    name, shape = FAMILIES[family]
    read = made(shape, tmp_path, form="entailment")
    written = export_classifier(read, tmp_path / "hf", "hf").path
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(written).eval()
    assert type(theirs).__name__ == f"{name}ForSequenceClassification"
    assert theirs.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    pairs = [("hello there", "how are you?"), ("你好 🙂", "I am well, thank you. hello")]
    encoded = encode_examples(read.model, TOKENIZER, [Example(pair) for pair in pairs])
    batch = pad_examples(encoded, read.model.config.model.vocabulary_size)
    with torch.no_grad():
        ours = read.model(batch.tokens_nt, batch.lengths_n, batch.counts_b)
    tokenizer = transformers.AutoTokenizer.from_pretrained(written)
    tokenizer.padding_side = "right"
    asked = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    lengths = asked["attention_mask"].sum(dim=1)
    for row, example in enumerate(encoded):
        assert asked["input_ids"][row, : lengths[row]].tolist() == example.sequences[0]
    with torch.no_grad():
        found = theirs(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"]).logits
    assert torch.allclose(found, ours, atol=1e-4)
    one = tokenizer("hello")["input_ids"]
    assert one[0] == len(tokenizer) - 3
    assert one[-1] == len(tokenizer) - 1


def test_a_number_is_exported_as_regression(tmp_path: Path) -> None:
    read = made(styles.GPT2, tmp_path, labels=(), mean=2.0, deviation=1.5, form="entailment")
    export_classifier(read, tmp_path / "hf", "hf", "f16")
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert settings["problem_type"] == "regression"
    assert len(settings["id2label"]) == 1
    assert settings["lmsmith"] == {"task": "tone", "mean": 2.0, "deviation": 1.5}


@pytest.mark.parametrize("form", ["similarity", "multiple_choice"])
def test_what_no_class_computes_is_refused(form: str, tmp_path: Path) -> None:
    labels = () if form == "multiple_choice" else ("no", "yes")
    read = made(styles.GPT2, tmp_path, form=form, labels=labels)
    with pytest.raises(UserError, match="cannot be exported"):
        export_classifier(read, tmp_path / "hf", "hf")
    assert not (tmp_path / "hf").exists()
    with pytest.raises(UserError, match="exported to hf"):
        export_classifier(read, tmp_path / "hf", "gguf")


def test_a_run_or_a_folder_names_its_classifier(tmp_path: Path) -> None:
    made(styles.GPT2, tmp_path)
    model = tmp_path / "finetune" / "model"
    assert find_classifier(tmp_path) == find_classifier(tmp_path / "finetune") == model
    assert find_classifier(model) == model
    (tmp_path / "empty").mkdir()
    assert find_classifier(tmp_path / "empty") is None
    with pytest.raises(UserError, match="is no classifier"):
        read_classifier(tmp_path / "empty")
