"""The quality classifier against scikit-learn, and GPT-3's rule of keeping by its closed form."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.build.document import Document, point
from lmsmith.corpus.build.quality import quality_warnings
from lmsmith.corpus.build.quality_classifier import (
    ClassifierConfig,
    add_scores,
    auc,
    keep_by_score,
    keep_probability,
    kept,
    train_classifier,
)

CONFIG = ClassifierConfig(feature_bits=12, examples=400, held_out=0.25)


def documents(source: str, words: list[str], count: int, seed: int) -> list[Document]:
    draw = random.Random(seed)
    shared = [f"shared{n}" for n in range(200)]
    return [
        Document(
            f"{source}/{n}", source, " ".join(draw.choices(words, k=6) + draw.choices(shared, k=60))
        )
        for n in range(count)
    ]


GOOD = documents("books", [f"good{n}" for n in range(40)], 300, 1)
RAW = documents("crawl", [f"raw{n}" for n in range(40)], 300, 2)
MIXED = documents("crawl", [f"good{n}" for n in range(40)], 50, 3)


@pytest.mark.parametrize("score", [0, 0.5, 0.9, 1])
def test_p_keep_is_its_closed_form(score: float) -> None:
    expected = (2 - score) ** -9
    assert keep_probability(score) == pytest.approx(expected)
    assert keep_probability(1) == 1
    ids = 40_000
    counted = sum(kept(score, point(5, "pareto", str(n))) for n in range(ids)) / ids
    assert counted == pytest.approx(expected, abs=5 * (expected * (1 - expected) / ids) ** 0.5)
    # NumPy's own Pareto, as the paper draws it.
    drawn = np.random.default_rng(6).pareto(9, ids) > 1 - score
    assert counted == pytest.approx(drawn.mean(), abs=0.015)


def test_held_out_documents_are_told_apart_and_chance_is_half() -> None:
    trained = train_classifier(GOOD, RAW, CONFIG, seed=7)
    assert trained.auc > 0.95
    assert (trained.examples + trained.measured, trained.measured > 100) == (600, True)
    assert train_classifier(GOOD[:150], GOOD[150:], CONFIG, seed=7).auc == pytest.approx(
        0.5, abs=0.15
    )


def test_scores_are_those_of_scikit_learn() -> None:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    from lmsmith.corpus.build.quality_classifier import _SCALE, features
    from lmsmith.corpus.words import read_words

    config = ClassifierConfig(feature_bits=12, held_out=0.01)
    trained = train_classifier(GOOD, RAW, config, seed=0)
    fit = [d for d in (*GOOD, *RAW) if point(0, "held out", d.id) >= 0.01]
    rows = []
    for document in (*fit, *MIXED):
        counts = np.bincount(features(read_words([document.text]).hashes_w, 12), minlength=4096)
        rows.append(_SCALE * counts / counts.sum())
    model = LogisticRegression(class_weight="balanced", tol=1e-4, max_iter=200)
    model.fit(csr_matrix(np.array(rows[: len(fit)])), [d.source == "books" for d in fit])
    expected = model.predict_proba(np.array(rows))[:, 1]
    found = trained.classifier.scores([document.text for document in (*fit, *MIXED)])
    assert found == pytest.approx(expected, abs=2e-3)


def test_scores_and_draws_do_not_depend_on_order_or_neighbours() -> None:
    classifier = train_classifier(GOOD, RAW, CONFIG, seed=7).classifier
    again = train_classifier(GOOD[::-1], RAW[::-1], CONFIG, seed=7).classifier
    assert classifier.key == again.key
    both = [*RAW, *GOOD, *MIXED, Document("crawl/empty", "crawl", "")]
    keep = partial(keep_by_score, curated=("books",), shape=9.0, seed=3)
    scored = list(add_scores(both, classifier))
    alone = [each for document in both for each in add_scores([document], classifier)]
    assert scored == alone
    whole = {each.id for each in keep(scored) if isinstance(each, Document)}
    assert whole == {e.id for d in scored[::-1] for e in keep([d]) if isinstance(e, Document)}
    assert {d.id for d in GOOD} <= whole
    shares = [sum(d.id in whole for d in part) / len(part) for part in (RAW, MIXED)]
    assert shares[0] < 0.15 < 0.4 < shares[1]


def test_documents_of_one_score_are_drawn_each_for_itself() -> None:
    same = [Document(f"crawl/{n}", "crawl", "x", scores={"quality": 0.9}) for n in range(3000)]
    found = list(keep_by_score(same, ("books",), shape=9.0, seed=3))
    share = sum(isinstance(each, Document) for each in found) / 3000
    assert share == pytest.approx(keep_probability(0.9), abs=0.04)
    other = list(keep_by_score(same, ("books",), shape=9.0, seed=4))
    assert found != other


def test_auc_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(8)
    one, other = draw.integers(0, 20, 70) / 20.0, draw.integers(0, 15, 90) / 20.0
    labels = [1] * 70 + [0] * 90
    assert auc(one, other) == pytest.approx(roc_auc_score(labels, np.concatenate((one, other))))


def test_a_class_without_documents_is_refused() -> None:
    with pytest.raises(UserError, match="0 curated and 300 raw documents"):
        train_classifier([], RAW, CONFIG, seed=0)


def test_a_warning_says_when_hardly_any_raw_document_is_kept() -> None:
    def said(kept: int) -> list[str]:
        crawl = {"documents_in": 1000, "documents_out": kept}
        books = {"documents_in": 5, "documents_out": 5}
        return list(quality_warnings({"crawl": crawl, "books": books}, ("books",)))

    assert said(10) == []
    (warning,) = said(9)
    assert "9 of 1,000 raw documents are kept (0.90%)" in warning
    assert list(quality_warnings({}, ())) == []
