"""Find and read fine-tuned classifiers: of a run, or a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.catalogue.reading import load_any_tokenizer
from lmsmith.catalogue.resolve import resolve
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import is_there, read_json
from lmsmith.models.classifier import Classifier
from lmsmith.models.folder import MOST_CONFIG_BYTES, load_classifier, load_tokenizer
from lmsmith.models.interop.bert import CLASSIFIER, from_bert_classifier
from lmsmith.models.interop.folders import naming, read_settings, read_weights
from lmsmith.tokenizers import Tokenizer

KIND = "classifier"


@dataclass(frozen=True)
class ReadClassifier:
    """A classifier in float32 and evaluation mode, its tokenizer and its folder."""

    model: Classifier
    tokenizer: Tokenizer
    path: Path
    card: dict[str, Any]


def find_classifier(word: str | Path) -> Path | None:
    """The folder of the classifier that a run, a folder or a registered name means, if it is one.

    Of a run it is the model of its stage finetune.
    """
    path = Path(word)
    if is_there(path):
        places = (path / "finetune" / "model", path / "model", path)
        return next((each for each in places if _is_classifier(each)), None)
    source = resolve(word)
    found = source.format in ("lmsmith", "hf") and _is_classifier(source.path)
    return source.path if found else None


def _is_classifier(folder: Path) -> bool:
    return _is_ours(folder) or _config(folder).get("architectures") == [CLASSIFIER]


def _is_ours(folder: Path) -> bool:
    return _config(folder).get("kind") == KIND


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    content = read_json(path, MOST_CONFIG_BYTES) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def read_classifier(word: str | Path) -> ReadClassifier:
    """Read the classifier that a word means.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = find_classifier(word)
    if path is None:
        raise UserError(
            f"{word} is no classifier",
            "make one: lmsmith finetune MODEL TASK; then name its run, such as runs/finetune-sst2",
        )
    if not _is_ours(path):
        return _read_bert(path)
    card = read_json(path / "card.json", MOST_CONFIG_BYTES) if _has_card(path) else {}
    model, tokenizer = load_classifier(path), load_tokenizer(path)
    return ReadClassifier(model, tokenizer, path, card if isinstance(card, dict) else {})


def _read_bert(path: Path) -> ReadClassifier:
    """Transformers' class; of a text alone where the folder is not of lmsmith's writing."""
    with refusing_damage(path):
        tokenizer, settings = load_any_tokenizer(path), read_settings(path)
        first, last = (*tokenizer.text_start, tokenizer.start_of_text)[0], tokenizer.end_of_text
        controls = first, last, last
        if "lmsmith" in settings:  # our control tokens follow the vocabulary
            known = int(settings["vocab_size"])
            controls = known - 3, known - 2, known - 1
        with naming(path):
            weights, place = read_weights(path), str(path / "config.json")
            model = from_bert_classifier(settings, weights, controls, place)
    known = model.config.model.vocabulary_size
    if known < tokenizer.vocabulary_size:
        raise UserError(
            f"{path}: the model knows {known} tokens and the tokenizer beside it "
            f"{tokenizer.vocabulary_size}",
            "its files are not of one model: fetch it again",
        )
    task = model.config.task or path.name
    return ReadClassifier(model, tokenizer, path, {"task": task})


def _has_card(path: Path) -> bool:
    return (path / "card.json").is_file()
