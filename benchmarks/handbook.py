"""Near-duplicates in a real corpus whose truth is known: one book in many languages.

Debian's handbook has a folder a language with the same files in each, and many pages are not
translated: those are near-duplicates of the English page of the same name. What MinHash finds is
compared with all pairs (brute force), and its clusters with the names of files.

    apt-get download debian-handbook && dpkg -x debian-handbook_*.deb handbook
    python benchmarks/handbook.py handbook/usr/share/doc/debian-handbook/html
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from lmsmith.cli.output import print_json
from lmsmith.corpus.build.chunks import read_removed
from lmsmith.corpus.build.document import Document
from lmsmith.corpus.build.local import LocalEngine
from lmsmith.corpus.build.minhash import MinHashConfig, shingle_sets
from lmsmith.corpus.build.near_duplicates import find_near_duplicates, remove_near_duplicates
from lmsmith.corpus.build.reading.html import html_text
from lmsmith.corpus.build.reading.opening import Unreadable

Pairs = set[tuple[str, str]]


def pages_of(folder: Path) -> Iterator[Document]:
    """The pages with text; their id is LANGUAGE/FILE."""
    for path in sorted(folder.glob("*/*.html")):
        try:
            text = html_text(path.read_bytes(), main_text=True)
        except Unreadable:
            continue
        yield Document(f"{path.parent.name}/{path.name}", "handbook", text)


def all_pairs(pages: Sequence[Document], config: MinHashConfig) -> Pairs:
    """Pairs of at least the similarity, by the shingles of all pages against all."""
    sets = list(shingle_sets([page.text for page in pages], config.words))
    sizes = np.array([len(each) for each in sets])
    shingles, columns = np.unique(np.concatenate(sets), return_inverse=True)
    starts = np.concatenate(([0], np.cumsum(sizes)))
    shape = len(pages), len(shingles)
    matrix = csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape)
    shared = (matrix @ matrix.T).tocoo()
    jaccard = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    chosen = (jaccard >= config.similarity) & (shared.row < shared.col)
    found = zip(shared.row[chosen].tolist(), shared.col[chosen].tolist(), strict=True)
    return {(pages[one].id, pages[other].id) for one, other in found}


def minhash_clusters(pages: Sequence[Document], config: MinHashConfig) -> dict[str, list[str]]:
    """Page that stays → pages of its cluster, itself among them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = LocalEngine(folder, 1)
        data = engine.read("read", [list(pages)], _given, "handbook")
        found = find_near_duplicates(engine, data, config, (), 0)
        engine.checkpoint(remove_near_duplicates(engine, data, found), "kept")
        clusters: dict[str, list[str]] = defaultdict(list)
        for file in sorted((folder / "kept").glob("*.removed.parquet")):
            for each in read_removed(file):
                clusters[each.reason.partition(": ")[2]].append(each.id)
    return {stays: [stays, *others] for stays, others in clusters.items()}


def _given(items: Iterable[list[Document]], _broadcast: Any) -> Iterator[Document]:
    for item in items:
        yield from item


def pairs_within(clusters: Mapping[str, Sequence[str]]) -> Pairs:
    """All pairs of pages of one cluster."""
    return {pair for pages in clusters.values() for pair in combinations(sorted(pages), 2)}


def joined(pairs: Pairs, pages: Sequence[Document]) -> Pairs:
    """The pairs of the connected components of some pairs."""
    number = {page.id: place for place, page in enumerate(pages)}
    rows, columns = np.array([[number[one], number[other]] for one, other in pairs]).T
    shape = len(pages), len(pages)
    labels = connected_components(csr_matrix((np.ones(len(rows)), (rows, columns)), shape))[1]
    clusters: dict[str, list[str]] = defaultdict(list)
    for label, page in zip(labels.tolist(), pages, strict=True):
        clusters[str(label)].append(page.id)
    return pairs_within(clusters)


def main(
    folder: Annotated[Path, tyro.conf.Positional],
    words: Annotated[int, tyro.conf.arg(metavar="N")] = 5,
    bands: Annotated[int, tyro.conf.arg(metavar="N")] = 16,
    rows: Annotated[int, tyro.conf.arg(metavar="N")] = 6,
    similarity: float = 0.8,
    json: bool = False,
) -> int:
    """Find the near-duplicates of the handbook, and compare them with all pairs.

    Args:
        folder: Of the handbook: a folder a language.
        words: Words of a shingle.
        bands: Bands of MinHash.
        rows: Hashes of a band.
        similarity: Least Jaccard similarity.
        json: Print one JSON object.
    """
    config = MinHashConfig(words=words, bands=bands, rows=rows, similarity=similarity)
    pages = list(pages_of(folder))
    started = time.perf_counter()
    brute = all_pairs(pages, config)
    brute_seconds, started = time.perf_counter() - started, time.perf_counter()
    clusters = minhash_clusters(pages, config)
    seconds = time.perf_counter() - started
    found, truth = pairs_within(clusters), joined(brute, pages)
    same = {pair for pair in found if _file(pair[0]) == _file(pair[1])}
    languages = Counter(id.partition("/")[0] for each in clusters.values() for id in each[1:])
    result = {
        "pages": len(pages),
        "megabytes": sum(page.size for page in pages) / 1e6,
        "pairs_by_brute_force": len(brute),
        "recall_of_pairs": len(brute & found) / len(brute),
        "recall_of_clusters": len(truth & found) / len(truth),
        "precision": len(truth & found) / len(found),
        "clusters": len(clusters),
        "pages_removed": sum(map(len, clusters.values())) - len(clusters),
        "same_file_name": len(same) / len(found),
        "other_names": [sorted(pair) for pair in sorted(found - same)][:10],
        "removed_by_language": dict(languages.most_common()),
        "seconds": {"minhash": seconds, "brute_force": brute_seconds},
    }
    if json:
        print_json(result)
        return 0
    console = Console()
    for name, value in result.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        console.print(f"{name}: {shown}", highlight=False)
    return 0


def _file(id: str) -> str:
    return id.partition("/")[2]


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
