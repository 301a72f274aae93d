"""GPT-3's quality classifier: logistic regression on hashed words (Brown et al. 2020, appendix A).

Curated text is the positive class, raw text the negative one. A document is kept if
pareto(9) > 1 - score, so that some of low score stay: P(keep) = (2 - score)^-9.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lmsmith.core.config import PositiveFloat
from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import fingerprint
from lmsmith.corpus.build.document import Count, Document, Yielded, point, removed
from lmsmith.corpus.build.groups import groups
from lmsmith.corpus.words import Hashes, batches, read_words

SCORE = "quality"
"""Name of the score in `Document.scores`."""

BINS = 20
"""Bins of the histogram of scores; ``score.NN`` counts documents, ``score_kept.NN`` kept ones."""

SAMPLE = "quality examples"
"""The draw of documents that the classifier is trained on."""

_FIXED = 1 << 20
"""Weights are whole numbers of this fraction: their sum is exact, in whatever order it is made."""
_SCALE = 30.0
"""Shares of words are multiplied by this, so that the regression's penalty of 1 is small."""


@dataclass(frozen=True)
class ClassifierConfig:
    """GPT-3's classifier: curated sources against all others, and a draw by its score."""

    enabled: bool = False
    """Train it, and remove most documents of low score. Common Crawl kept about 1.3 %."""
    feature_bits: Annotated[int, Meta(ge=4, le=26)] = 18
    """Words are hashed to 2 to the power of this many features."""
    examples: Annotated[int, Meta(ge=20)] = 20_000
    """Most documents of either class that it is trained and measured on."""
    held_out: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """Share of the examples that it is measured on."""
    pareto: PositiveFloat = 9.0
    """Shape of the Pareto distribution; more keeps fewer documents of low score. GPT-3: 9."""


@dataclass(frozen=True)
class Classifier:
    """Weights of a trained classifier.

    Attributes:
        weights_f: (2^bits) int64 fixed-point weight of each feature.
        bias: of the logit.
    """

    bits: int
    weights_f: NDArray[np.int64]
    bias: float

    @cached_property
    def key(self) -> str:
        """Fingerprint of the weights, for `engine.identity`."""
        return fingerprint([self.bits, self.weights_f.tobytes().hex(), self.bias])

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts) probability that each text is curated: σ(bias + the mean of its words' weights).

        A text without words has the score of the bias.
        """
        parts = [np.zeros(0)]
        for part in batches(texts):
            words = read_words(texts[part])
            weights_w = self.weights_f[features(words.hashes_w, self.bits)]
            until = np.concatenate(([0], np.cumsum(weights_w)))
            sums = until[words.first_t[1:]] - until[words.first_t[:-1]]
            means = sums / (_FIXED * np.maximum(1, np.diff(words.first_t)))
            parts.append((1 + np.tanh((means + self.bias) / 2)) / 2)
        return np.concatenate(parts)


def features(hashes: Hashes, bits: int) -> NDArray[np.int64]:
    """The feature of each word: the first bits of its hash."""
    return (hashes >> np.uint64(64 - bits)).astype(np.int64)


@dataclass(frozen=True)
class Trained:
    """A classifier and how well it tells the held-out documents of the two classes apart.

    Attributes:
        auc: probability that a held-out curated document has a higher score than a raw one.
        examples: documents that it was trained on.
        measured: held-out documents.
    """

    classifier: Classifier
    auc: float
    examples: int
    measured: int

    @property
    def figures(self) -> dict[str, float]:
        """Those for the corpus's record."""
        return {"auc": self.auc, "examples": self.examples, "measured": self.measured}


def train_classifier(
    curated: Sequence[Document], raw: Sequence[Document], config: ClassifierConfig, seed: int
) -> Trained:
    """Fit the regression on documents of both classes, either of the same weight in all.

    Which are held out is drawn from a hash of their ids; the order of documents changes nothing.

    Raises:
        UserError: too few documents of a class.
    """
    classes = [_drawn(curated, config, seed), _drawn(raw, config, seed)]
    fit, held = zip(*(_divided(part, config, seed) for part in classes), strict=True)
    if not all((*fit, *held)):
        raise UserError(
            f"the quality classifier has {len(curated):,} curated and {len(raw):,} raw documents",
            "mark sources of good text with curated = true, and add raw ones; some ten of each are "
            "the least. Or set quality.classifier.enabled = false",
        )
    texts = [document.text for part in fit for document in part]
    labels = np.repeat([1, 0], [len(part) for part in fit])
    classifier = _fitted(texts, labels, config)
    good, bad = (classifier.scores([document.text for document in part]) for part in held)
    return Trained(classifier, auc(good, bad), len(texts), len(good) + len(bad))


def _drawn(documents: Sequence[Document], config: ClassifierConfig, seed: int) -> list[Document]:
    """No more documents than the settings say, in an order that depends on their ids alone."""

    def place(document: Document) -> tuple[float, str]:
        return point(seed, SAMPLE, document.id), document.id

    return sorted(documents, key=place)[: config.examples]


def _divided(
    documents: Sequence[Document], config: ClassifierConfig, seed: int
) -> tuple[list[Document], list[Document]]:
    """Documents to fit, and held-out ones."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        parts[point(seed, "held out", document.id) < config.held_out].append(document)
    return parts


def _fitted(
    texts: Sequence[str], labels: NDArray[np.int64], config: ClassifierConfig
) -> Classifier:
    """The regression on the share of each feature among a text's words."""
    with needs_extra("corpus"):
        from scipy.sparse import csr_matrix
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    rows = [read_words(texts[part]) for part in batches(texts)]
    counts = np.concatenate([np.diff(words.first_t) for words in rows])
    columns = np.concatenate([features(words.hashes_w, config.feature_bits) for words in rows])
    shape = len(texts), 1 << config.feature_bits
    shares = np.repeat(_SCALE / np.maximum(1, counts), counts)
    starts = np.concatenate(([0], np.cumsum(counts)))
    matrix = csr_matrix((shares, columns, starts), shape)
    matrix.sum_duplicates()
    model = LogisticRegression(class_weight="balanced", max_iter=200, tol=1e-4)
    with warnings.catch_warnings():  # of classes that do not differ; the AUC shows it
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(matrix, labels)
    weights = np.rint(model.coef_[0] * _SCALE * _FIXED).astype(np.int64)
    return Classifier(config.feature_bits, weights, float(model.intercept_[0]))


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Area under the ROC curve: P(positive > negative) + P(equal) / 2."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(negative)))


def keep_probability(score: float, shape: float = 9.0) -> float:
    """P(pareto(shape) > 1 - score) = (2 - score)^-shape; P(pareto > x) = (1 + x)^-shape."""
    return float((2 - score) ** -shape)


def kept(score: float, drawn: float, shape: float = 9.0) -> bool:
    """Whether a document is kept.

    Args:
        score: from 0 to 1.
        drawn: number in [0, 1) drawn for the document, from which its pareto(shape) is made.
        shape: of the distribution.
    """
    return float((1 - drawn) ** (-1 / shape)) - 1 > 1 - score


def add_scores(documents: Iterable[Document], classifier: Any) -> Iterator[Yielded]:
    """The documents with their score."""
    for group in groups(documents):
        scores = classifier.scores([document.text for document in group]).tolist()
        for document, score in zip(group, scores, strict=True):
            scored = document.scores | {SCORE: round(score, 6)}
            yield msgspec.structs.replace(document, scores=scored)


def keep_by_score(
    documents: Iterable[Document], curated: Sequence[str], shape: float, seed: int
) -> Iterator[Yielded]:
    """The documents that a draw by their score keeps, and all of curated sources."""
    for document in documents:
        score = document.scores[SCORE]
        drawn = point(seed, "pareto", document.id)
        bin = min(BINS - 1, int(score * BINS))
        yield Count(document.source, f"score.{bin:02d}")
        if document.source in curated or kept(score, drawn, shape):
            yield Count(document.source, f"score_kept.{bin:02d}")
            yield document
        else:
            yield removed(document, f"quality: score {score:.3f}")
