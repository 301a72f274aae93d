"""The steps of quality: Gopher's and C4's rules, then the classifier; curated text is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lmsmith.corpus.build.c4 import C4Config, apply_c4
from lmsmith.corpus.build.document import Document
from lmsmith.corpus.build.engine import Data, Engine
from lmsmith.corpus.build.gopher import GopherConfig, apply_gopher
from lmsmith.corpus.build.quality_classifier import (
    SAMPLE,
    ClassifierConfig,
    Trained,
    add_scores,
    keep_by_score,
    train_classifier,
)

FEW = 0.01
"""Share of the raw documents below which a warning says how few are kept."""


@dataclass(frozen=True)
class QualityConfig:
    """Which documents are good enough. Curated sources pass whatever they are."""

    gopher: GopherConfig = field(default_factory=GopherConfig)
    """Rules on documents: length, symbols, repetition."""
    c4: C4Config = field(default_factory=C4Config)
    """Rules on lines, for web pages."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """A classifier that tells curated from raw text, and a draw by its score."""


def apply_rules(
    engine: Engine, data: Data, config: QualityConfig, curated: tuple[str, ...]
) -> Data:
    """Documents that break no rule, with the lines that break none."""
    if config.gopher.enabled:
        data = engine.map(data, "gopher", partial(apply_gopher, config=config.gopher), curated)
    if config.c4.enabled:
        data = engine.map(data, "c4", partial(apply_c4, config=config.c4), curated)
    return data


def apply_classifier(
    engine: Engine, data: Data, config: ClassifierConfig, curated: tuple[str, ...], seed: int
) -> tuple[Data, Trained]:
    """Documents with scores, without those that the draw removes.

    Args:
        data: a checkpoint; the classifier is trained on a sample of it.
        curated: the sources of the positive class; all others are the negative one.
    """
    counts = {source: count for source, (count, _) in engine.sizes(data).items()}
    good = _sample(engine, data, _chosen(counts, curated, True), config.examples, seed)
    raw = _sample(engine, data, _chosen(counts, curated, False), config.examples, seed)
    trained = train_classifier(good, raw, config, seed)
    data = engine.map(data, "score", add_scores, trained.classifier)
    keep = partial(keep_by_score, shape=config.pareto, seed=seed)
    return engine.map(data, "quality", keep, curated), trained


def quality_warnings(
    counts: Mapping[str, Mapping[str, int]], curated: Sequence[str]
) -> Iterator[str]:
    """A sentence where the draw leaves hardly any raw document: GPT-3 kept 1.3 % of the crawl.

    Args:
        counts: of the step, by source.
        curated: the sources that are kept whole.
    """
    raw = [counts[source] for source in counts if source not in curated]
    read = sum(each.get("documents_in", 0) for each in raw)
    kept = sum(each.get("documents_out", 0) for each in raw)
    if kept < FEW * read:
        yield (
            f"{kept:,} of {read:,} raw documents are kept ({kept / read:.2%}): the others look too "
            "unlike the curated ones. A lower quality.classifier.pareto keeps more"
        )


def _chosen(counts: Mapping[str, int], curated: Sequence[str], wanted: bool) -> dict[str, int]:
    """The sources of one class, with their numbers of documents."""
    return {source: n for source, n in counts.items() if (source in curated) == wanted}


def _sample(
    engine: Engine, data: Data, counts: Mapping[str, int], examples: int, seed: int
) -> list[Document]:
    """About so many documents of some sources."""
    total = sum(counts.values())
    if not total:
        return []
    chosen = engine.map(data, "examples", only, tuple(counts))
    return engine.sample(chosen, seed, SAMPLE, min(1.0, 1.1 * examples / total))


def only(documents: Iterable[Document], sources: Sequence[str]) -> Iterator[Any]:
    """The documents of some sources."""
    return (document for document in documents if document.source in sources)
