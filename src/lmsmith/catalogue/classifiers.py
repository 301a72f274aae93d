"""Find and read fine-tuned classifiers: of a run, or a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.catalogue.resolve import resolve
from lmsmith.core.errors import UserError
from lmsmith.core.files import is_there, read_json
from lmsmith.models.classifier import Classifier
from lmsmith.models.folder import MOST_CONFIG_BYTES, load_classifier, load_tokenizer
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
    found = source.format == "lmsmith" and _is_classifier(source.path)
    return source.path if found else None


def _is_classifier(folder: Path) -> bool:
    config = folder / "config.json"
    if not config.is_file():
        return False
    content = read_json(config, MOST_CONFIG_BYTES)
    return isinstance(content, dict) and content.get("kind") == KIND


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
    card = read_json(path / "card.json", MOST_CONFIG_BYTES) if _has_card(path) else {}
    model, tokenizer = load_classifier(path), load_tokenizer(path)
    return ReadClassifier(model, tokenizer, path, card if isinstance(card, dict) else {})


def _has_card(path: Path) -> bool:
    return (path / "card.json").is_file()
