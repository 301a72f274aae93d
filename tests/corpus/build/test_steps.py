"""All steps of a recipe together: what each one removes, and that the whole is deterministic."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lmsmith.core.config import SettingsError
from lmsmith.core.errors import UserError
from lmsmith.corpora import build_corpus
from lmsmith.corpus.build.recipe import load_corpus_recipe

RECIPE = """
out = "out"
workers = 1
[sources.crawl]
paths = ["crawl.jsonl"]
[sources.books]
paths = ["books.jsonl"]
curated = true
[quality.gopher]
enabled = true
least_words = 30
least_stop_words = 0
[quality.classifier]
enabled = true
pareto = 0.5
held_out = 0.4
[decontaminate]
tasks = ["asked.jsonl"]
[shards]
vocabulary_size = 300
"""

QUESTION = "Who was the very first person that ever walked alone across the wide frozen lake?"


def words(draw: random.Random, kind: str, count: int = 60) -> str:
    return " ".join(
        f"{kind}{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in draw.choices(range(300), k=count)
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Junk, near-duplicates of a book, a task's question, good text in the crawl, and books."""
    draw = random.Random(1)
    books = [words(draw, "good") for _ in range(60)]
    crawl = [words(draw, "raw") for _ in range(60)]
    crawl += ["# # # # " * 20, "too short", "\n".join(["line"] * 60)]
    near = books[0].split()
    crawl += [" ".join([*near[:-2], "other"]), books[1]]
    crawl += [f"{words(draw, 'good', 80)} {QUESTION} {words(draw, 'good', 80)}"]
    for name, texts in (("books", books), ("crawl", crawl)):
        lines = [json.dumps({"text": text}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "asked.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "me"}))
    (tmp_path / "corpus.toml").write_text(RECIPE)
    return tmp_path / "corpus.toml"


def test_each_step_removes_what_it_should(recipe: Path) -> None:
    record = build_corpus(str(recipe), quiet=True).record
    removed = {
        step: {
            name.removeprefix("removed."): int(count)
            for name, count in sources.get("crawl", {}).items()
            if name.startswith("removed.")
        }
        for step, sources in record["steps"].items()
    }
    assert removed["gopher"] == {"words": 1, "mean word length": 1, "duplicate lines": 1}
    assert removed["quality"]["quality"] > 20
    assert removed["exact"] == {"equal to another document": 1}
    assert removed["near-duplicates"] == {"near-duplicate of another document": 1}
    assert removed["decontaminate"] == {"overlap with task asked": 1}
    assert record["steps"]["decontaminate"]["crawl"]["documents_out"] == (
        record["steps"]["decontaminate"]["crawl"]["documents_in"] + 1
    )
    assert record["sources"]["books"]["documents"] + record["validation_documents"] >= 60
    assert record["figures"]["quality_classifier"]["auc"] > 0.85
    assert record["figures"]["decontaminate"] == {
        "items": 1,
        "runs_of_words": 3,
        "items_too_short_to_find": 0,
    }


def test_problems_are_named_before_anything_is_read(recipe: Path) -> None:
    changed = ["sources.books.curated=false", 'quality.gopher.drop=["wrods"]']
    with pytest.raises(SettingsError) as found:
        load_corpus_recipe(recipe, changed)
    assert "quality.gopher.drop.0" in str(found.value)
    assert "set curated = true in the sources of good text" in str(found.value)
    with pytest.raises(UserError, match="lambda: no such task"):
        build_corpus(str(recipe), set=['decontaminate.tasks=["lambda"]'], quiet=True)
