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
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.labelled.task import Example, Form
from lmsmith.evaluation.classifier_function import ClassifierFunction
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.hugging_face import to_hugging_face
from lmsmith.training.classification import encode_examples, pad_examples
from lmsmith.training.machine import resolve_machine
from tiny_encoders import tiny_masked_lm, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import styles

transformers = pytest.importorskip("transformers")

TOKENIZER = Tokenizer.train(["hello there, how are you? I am well, thank you. 你好 🙂"] * 4, 300)
MACHINE = resolve_machine(MachineConfig(precision="fp32", threads=1))
GPT_NEO = replace(styles.GPT2, attention_pattern=("dense", "banded"), window=5, qkv_bias=False)
FAMILIES = {
    "gpt1": ("OpenAIGPT", styles.STYLES["gpt1"]),
    "gpt2": ("GPT2", styles.GPT2),
    "gpt-neo": ("GPTNeo", GPT_NEO),
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
    assert settings["lmsmith"] == {
        "task": "tone", "form": "entailment", "texts": ["text"], "length": 64,
        "mean": 2.0, "deviation": 1.5,
    }  # fmt: skip


WORDS = tiny_tokenizer()


def bert_classifier(folder: Path, *, pooler: bool, form: Form = "entailment") -> ReadClassifier:
    encoder = tiny_masked_lm(WORDS.vocabulary_size, next_sentence=pooler).encoder
    texts = ("first", "second") if form == "entailment" else ("text",)
    config = ClassifierConfig(encoder.config, "tone", form, texts, labels=("no", "yes", "maybe"))
    model = Classifier(replace(config, length=40), encoder).eval()
    model.initialise_head(torch.Generator().manual_seed(4))
    with torch.no_grad():
        model.head.weight.mul_(20)
    save_model(folder / "finetune" / "model", model, WORDS, {})
    return read_classifier(folder)


def our_logits(read: ReadClassifier, texts: list[tuple[str, ...]]) -> torch.Tensor:
    encoded = encode_examples(read.model, read.tokenizer, [Example(each) for each in texts])
    batch = pad_examples(encoded, read.model.config.model.vocabulary_size)
    with torch.no_grad():
        logits: torch.Tensor = read.model(batch.tokens_nt, batch.lengths_n, batch.counts_b)
    return logits


def their_logits(folder: Path, texts: list[tuple[str, ...]]) -> torch.Tensor:
    model, about = transformers.BertForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = tokenizer(*map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**asked).logits
    return logits


PAIRS: list[tuple[str, ...]] = [("the dog ran", "and the cat sat"), ("a house by the sea", "blue")]


@pytest.mark.parametrize("pooler", [True, False])
def test_bert_s_class_gives_the_same_logits_and_is_read_again(pooler: bool, tmp_path: Path) -> None:
    read = bert_classifier(tmp_path, pooler=pooler)
    written = export_classifier(read, tmp_path / "hf", "hf").path
    ours = our_logits(read, PAIRS)
    assert ours.std() > 0.1
    torch.testing.assert_close(their_logits(written, PAIRS), ours, atol=1e-4, rtol=0)
    again = read_classifier(written)
    assert again.model.config.labels == ("no", "yes", "maybe")
    assert again.model.config.texts == ("first", "second")
    torch.testing.assert_close(our_logits(again, PAIRS), ours, atol=1e-4, rtol=0)
    swapped = [(second, first) for first, second in PAIRS]
    assert not torch.allclose(our_logits(again, swapped), ours, atol=1e-2)


@pytest.mark.parametrize("labels", [3, 2, 1])
def test_a_bert_classifier_of_transformers_is_read(labels: int, tmp_path: Path) -> None:
    torch.manual_seed(7)
    config = transformers.BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        vocab_size=WORDS.vocabulary_size, max_position_embeddings=32, num_labels=labels,
    )  # fmt: skip
    theirs = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(float("LayerNorm.weight" in name), 0.3)
    theirs.save_pretrained(tmp_path / "hf")
    to_hugging_face(WORDS, tmp_path / "hf")
    texts: list[tuple[str, ...]] = [("the dog ran to the river",), ("blue",)]
    read = read_classifier(tmp_path / "hf")
    expected = their_logits(tmp_path / "hf", texts)
    torch.testing.assert_close(our_logits(read, texts), expected, atol=1e-4, rtol=0)
    assert read.model.config.predicts_numbers == (labels == 1)
    (row,) = ClassifierFunction(read, MACHINE)(["blue"])
    if labels > 1:
        place = int(expected[1].argmax())
        assert row["label"] == f"LABEL_{place}"
        probability = float(expected[1].softmax(dim=0)[place])
        assert row["probability"] == pytest.approx(probability, abs=1e-4)
    export_classifier(read, tmp_path / "again", "hf")
    torch.testing.assert_close(their_logits(tmp_path / "again", texts), expected, atol=1e-4, rtol=0)


def test_a_damaged_bert_classifier_is_refused(tmp_path: Path) -> None:
    read = bert_classifier(tmp_path, pooler=True, form="classification")
    folder = export_classifier(read, tmp_path / "hf", "hf").path
    settings = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"problem_type": "multi_label_classification"}, "several labels"),
        ({"id2label": {"0": "no"}}, r"classifier.weight has the shape \(3, 24\)"),
        ({"lmsmith": settings["lmsmith"] | {"form": "poem"}}, "form"),
    ):
        (folder / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=said):
            read_classifier(folder)


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
