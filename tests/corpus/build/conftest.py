"""A small corpus on disk: a crawl with faults, and curated text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.progress import QuietProgress
from lmsmith.corpus.build.recipe import load_corpus_recipe
from lmsmith.corpus.build.run import build_corpus
from lmsmith.tokenizers import Tokenizer

WORDS = [
    "the",
    "river",
    "runs",
    "past",
    "old",
    "mills",
    "where",
    "people",
    "once",
    "ground",
    "their",
    "corn",
    "and",
    "sold",
    "flour",
]

RECIPE = """
seed = 3
out = "out"
workers = 1
[sources.crawl]
paths = ["crawl/*.jsonl"]
[sources.books]
paths = ["books"]
curated = true
[deduplicate.near]
enabled = false
[shards]
vocabulary_size = 300
validation = 0.1
"""


def sentence(number: int) -> str:
    """A text of its own for every number."""
    chosen = [WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(12)]
    return f"{number} {' '.join(chosen)}."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A recipe of 60 rows in two files, five of them doubles of books, and 20 books."""
    (tmp_path / "crawl").mkdir()
    (tmp_path / "books").mkdir()
    for file in range(2):
        rows = [{"text": sentence(n), "id": f"row-{n}"} for n in range(file * 30, file * 30 + 30)]
        lines = [json.dumps(row) for row in rows]
        (tmp_path / f"crawl/{file}.jsonl").write_text("\n".join(lines) + "\n")
    for number in range(20):
        text = sentence(number if number < 5 else 100 + number)
        (tmp_path / f"books/{number:02d}.txt").write_text(text)
    (tmp_path / "corpus.toml").write_text(RECIPE)
    return tmp_path / "corpus.toml"


Build = Callable[..., dict[str, Any]]


@pytest.fixture
def build() -> Build:
    """Builds a recipe with settings changed."""

    def call(recipe: Path, *changed: str) -> dict[str, Any]:
        return build_corpus(load_corpus_recipe(recipe, changed), Tokenizer.load, QuietProgress())

    return call


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a finished corpus that must be the same in each build."""
    left_out = {"build.json", ".lock"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in left_out and "work" not in path.parts
    }


def save_random_classifier(folder: Path) -> None:
    """A fine-tuned classifier of random weights, sharp enough to disagree about texts."""
    import torch

    from lmsmith.models.classifier import Classifier, ClassifierConfig
    from lmsmith.models.config import ModelConfig
    from lmsmith.models.folder import save_model
    from tiny_models import TEXTS, random_decoder

    tokenizer = Tokenizer.train(TEXTS, 300)
    shape = ModelConfig(1, 16, 2, 32, tokenizer.vocabulary_size)
    model = Classifier(ClassifierConfig(shape, "tone", labels=("fine", "harmful"), length=32))
    model.decoder.load_state_dict(random_decoder(shape).state_dict())
    model.initialise_head(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    save_model(folder, model, tokenizer, {})
