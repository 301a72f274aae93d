"""A classifier that knows no language: logistic regression over the words of the texts."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_WORD = re.compile(r"\w+|[^\w\s]")


def is_available() -> bool:
    """Whether scikit-learn is installed, which computes it."""
    return importlib.util.find_spec("sklearn") is not None


def features(texts: Sequence[str]) -> list[str]:
    """Words and pairs of neighbouring words of each text, marked by the text's number, and the
    words that two texts have in common, or have alone."""
    found, bags = [], []
    for number, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        pairs = [f"{one} {other}" for one, other in itertools.pairwise(words)]
        found += [f"{number}:{each}" for each in (*words, *pairs)]
        bags.append(set(words))
    if len(bags) == 2:
        union = len(bags[0] | bags[1]) or 1
        found += [f"=:{each}" for each in bags[0] & bags[1]]
        found += ["=shared"] * round(10 * len(bags[0] & bags[1]) / union)
    return found


def predict_labels(
    train: Sequence[Sequence[str]], labels: Sequence[int], test: Sequence[Sequence[str]]
) -> NDArray[np.int64]:
    """The label of each test example; an example is its texts. L2-regularised, C = 1."""
    from sklearn.linear_model import LogisticRegression

    train_nf, test_nf = _counted(train, test)
    model = LogisticRegression(max_iter=1_000).fit(train_nf, labels)
    predicted: NDArray[np.int64] = model.predict(test_nf).astype(np.int64)
    return predicted


def predict_numbers(
    train: Sequence[Sequence[str]], numbers: Sequence[float], test: Sequence[Sequence[str]]
) -> Floats:
    """The number of each test example, by ridge regression."""
    from sklearn.linear_model import Ridge

    train_nf, test_nf = _counted(train, test)
    predicted: Floats = Ridge(alpha=10.0, solver="lsqr").fit(train_nf, numbers).predict(test_nf)
    return predicted


def _counted(
    train: Sequence[Sequence[str]], test: Sequence[Sequence[str]]
) -> tuple[object, object]:
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer=features)
    return counter.fit_transform(train), counter.transform(test)
