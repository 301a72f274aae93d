"""Harmful text by a classifier: one of the user's examples, and a fine-tuned one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from corpus.build.conftest import content as all_content
from corpus.build.conftest import save_random_classifier
from lmsmith.core.config import SettingsError
from lmsmith.core.errors import UserError
from lmsmith.corpora import build_corpus
from lmsmith.corpus.build.recipe import load_corpus_recipe
from lmsmith.corpus.finished import FinishedCorpus
from lmsmith.evaluation.harmful_text import fine_tuned_scorer

RECIPE = """
out = "out"
workers = 1
[sources.crawl]
paths = ["crawl"]
[language]
enabled = false
[deduplicate]
exact = false
[deduplicate.near]
enabled = false
[shards]
vocabulary_size = 300
validation = 0.0
"""


def text(kind: str, number: int) -> str:
    draw = random.Random(f"{kind}{number}")
    words = [f"{kind}{draw.randrange(40)}" for _ in range(20)] + ["and", "the", "of"] * 3
    draw.shuffle(words)
    return " ".join(words)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A crawl of 30 files, every third of them harmful, and 24 examples of each class."""
    for folder in ("crawl", "bad", "good"):
        (tmp_path / folder).mkdir()
    for n in range(30):
        kind = "bad" if n % 3 == 0 else "good"
        (tmp_path / f"crawl/{n:02d}.txt").write_text(text(kind, 100 + n))
    for n in range(24):
        for kind in ("bad", "good"):
            (tmp_path / f"{kind}/{n}.txt").write_text(text(kind, n))
    (tmp_path / "corpus.toml").write_text(RECIPE)
    return tmp_path / "corpus.toml"


def build(recipe: Path, *settings: str) -> dict[str, Any]:
    return build_corpus(str(recipe), set=settings, quiet=True).record


def scores(out: Path) -> dict[str, float]:
    """File → the score that was saved with its document."""
    rows = [
        row for path in out.rglob("documents.parquet") for row in pq.read_table(path).to_pylist()
    ]
    return {Path(row["id"]).name: json.loads(row["scores"])["harmful"] for row in rows}


def content(out: Path) -> dict[str, bytes]:
    """The files of a corpus without its page, which names times."""
    return {name: each for name, each in all_content(out).items() if name != "report.html"}


EXAMPLES = ('harmful.examples=["bad"]', 'harmful.harmless=["good"]')


def test_examples_train_a_classifier(recipe: Path) -> None:
    record = build(recipe, *EXAMPLES)
    assert record["figures"]["harmful_classifier"]["auc"] == 1.0
    assert "held-out ones is 1.000" in (recipe.parent / "out/report.html").read_text()
    kept = scores(recipe.parent / "out")
    assert sorted(kept) == [f"{n:02d}.txt" for n in range(30) if n % 3]
    assert max(kept.values()) < 0.5
    removed = pq.read_table(FinishedCorpus.load(recipe.parent / "out").removed).to_pylist()
    assert {row["step"] for row in removed} == {"harmful-score"}
    assert all(row["reason"].startswith("harmful: score 0.") for row in removed)
    build(recipe, *EXAMPLES, "workers=2", "out=other")
    assert content(recipe.parent / "other") == content(recipe.parent / "out")
    assert build(recipe, *EXAMPLES, "harmful.threshold=1")["sources"]["crawl"]["documents"] == 30


@pytest.fixture
def classifier(recipe: Path) -> Path:
    save_random_classifier(recipe.parent / "toxic")
    return recipe.parent / "toxic"


@pytest.mark.parametrize("label", ["", "fine"])
def test_a_fine_tuned_classifier_judges_the_largest_piece(
    recipe: Path, classifier: Path, label: str
) -> None:
    scorer = fine_tuned_scorer(str(classifier), label)
    files = {path.name: path.read_text() for path in (recipe.parent / "crawl").iterdir()}
    expected = dict(zip(files, scorer.scores(list(files.values())), strict=True))
    # A text of two pieces has the score of the worse one.
    (one,), (other,) = scorer.scores(["x " * 48]), scorer.scores(["the " * 24])
    assert scorer.scores(["x " * 48 + "the " * 24]) == [max(one, other)]
    threshold = sorted(expected.values())[12]
    settings = (
        "harmful.classifier=toxic",
        f"harmful.label={label}",
        f"harmful.threshold={threshold}",
    )
    build(recipe, *settings)
    assert scores(recipe.parent / "out") == {
        name: round(score, 6) for name, score in expected.items() if round(score, 6) < threshold
    }
    build(recipe, *settings, "workers=2", "out=other")
    assert content(recipe.parent / "other") == content(recipe.parent / "out")


def test_what_cannot_judge_is_refused_with_a_fix(recipe: Path, classifier: Path) -> None:
    for settings, said in (
        (EXAMPLES[:1], "harmless"),
        ((*EXAMPLES, "harmful.classifier=toxic"), "leave one out"),
        (("harmful.label=fine",), "a label of the classifier"),
    ):
        with pytest.raises(SettingsError, match=said):
            load_corpus_recipe(recipe, settings)
    with pytest.raises(UserError, match=r"no such label"):
        build(recipe, "harmful.classifier=toxic", "harmful.label=rude")
    with pytest.raises(UserError, match="no classifier"):
        build(recipe, "harmful.classifier=crawl")
    with pytest.raises(UserError, match="none: no such file"):
        build(recipe, 'harmful.examples=["none"]', EXAMPLES[1])
    for path in sorted((recipe.parent / "bad").iterdir())[5:]:
        path.unlink()
    with pytest.raises(UserError, match=r"harmful\.examples has 5 texts: too few"):
        build(recipe, *EXAMPLES)
