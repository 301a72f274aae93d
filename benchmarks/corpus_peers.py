"""One peer of corpus.py on a JSONL file, in a Python that has the peer: kept ids and seconds.

    python corpus_peers.py datatrove|datasketch|rensa CORPUS.jsonl FOLDER --bands 14 --rows 8

Prints a line of JSON: seconds of wall and processor by part, peak memory, ids of removed documents.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SHINGLE = 5
_WORD = re.compile(r"[^\W_]+")


def rows(corpus: Path) -> Iterator[dict[str, str]]:
    """The rows of the corpus."""
    with corpus.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def shingles(text: str) -> list[str]:
    """Five words in a row, in small letters without marks, as lmsmith's are."""
    words = _WORD.findall(text.lower())
    return [" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))]


def peak_memory() -> int:
    """Most bytes of memory that this process, or one that it started, had at a time."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(each).ru_maxrss for each in who) * 1024


class Clock:
    """Seconds of wall and processor of each part."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[float, float]] = {}
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        own, children = map(resource.getrusage, who)
        spent = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        return time.perf_counter(), spent

    def part(self, name: str) -> None:
        """What was done since the last part is this one."""
        now = self._now()
        self.parts[name] = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now


def datatrove(corpus: Path, folder: Path, bands: int, rows_: int, clock: Clock) -> set[str]:
    """Its four stages of MinHash, one task after the other, with words split at white space."""
    import datatrove.pipeline.dedup.minhash as module
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Split(WordTokenizer):
        """White space; its own WhitespaceTokenizer runs spaCy."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    config = module.MinhashConfig(
        n_grams=SHINGLE, num_buckets=bands, hashes_per_bucket=rows_, hash_config=HashConfig()
    )
    clock.part("import")
    names = ("signatures", "buckets", "removed", "kept", "gone", "logs")
    places = {name: str(folder / name) for name in names}

    def run(name: str, pipeline: list[Any], tasks: int = 1) -> None:
        logs = f"{places['logs']}/{name}"
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=1, logging_dir=logs).run()
        clock.part(name)

    def reader() -> JsonlReader:
        return JsonlReader(str(corpus.parent), glob_pattern=corpus.name)

    run("signatures", [reader(), MinhashDedupSignature(places["signatures"], config, Split())])
    run(
        "buckets",
        [MinhashDedupBuckets(places["signatures"], places["buckets"], config=config)],
        bands,
    )
    run("clusters", [MinhashDedupCluster(places["buckets"], places["removed"], config=config)])
    gone = JsonlWriter(places["gone"], compression=None)
    kept = JsonlWriter(places["kept"], compression=None)
    run("filter", [reader(), MinhashDedupFilter(places["removed"], exclusion_writer=gone), kept])
    return {row["id"] for path in Path(places["gone"]).rglob("*.jsonl") for row in rows(path)}


def datasketch(corpus: Path, folder: Path, bands: int, rows_: int, clock: Clock) -> set[str]:
    """Signatures in batches, and its LSH: a document with an earlier one in its buckets goes."""
    from datasketch import MinHash, MinHashLSH

    del folder
    clock.part("import")
    ids, texts = zip(*((row["id"], row["text"]) for row in rows(corpus)), strict=True)
    clock.part("read")
    tokens = ([shingle.encode() for shingle in shingles(text)] for text in texts)
    sketches = MinHash.bulk(tokens, num_perm=bands * rows_)
    clock.part("signatures")
    index = MinHashLSH(num_perm=bands * rows_, params=(bands, rows_))
    gone = set()
    for id, sketch in zip(ids, sketches, strict=True):
        if index.query(sketch):
            gone.add(id)
        index.insert(id, sketch)
    clock.part("buckets")
    return gone


def rensa(corpus: Path, folder: Path, bands: int, rows_: int, clock: Clock) -> set[str]:
    """R-MinHash signatures of all documents at once, and its LSH on the matrix."""
    from rensa import RMinHash, RMinHashLSH

    del folder
    clock.part("import")
    ids, texts = zip(*((row["id"], row["text"]) for row in rows(corpus)), strict=True)
    clock.part("read")
    matrix = RMinHash.digest_matrix_from_token_sets(list(map(shingles, texts)), bands * rows_, 42)
    clock.part("signatures")
    index = RMinHashLSH(threshold=0.8, num_perm=bands * rows_, num_bands=bands)
    flags = index.query_duplicate_flags_matrix_one_shot(matrix)  # of all members of a bucket
    clock.part("buckets")
    return {id for id, flag in zip(ids, flags, strict=True) if flag}


PEERS: dict[str, Callable[[Path, Path, int, int, Clock], set[str]]] = {
    "datatrove": datatrove,
    "datasketch": datasketch,
    "rensa": rensa,
}


def main() -> None:
    """Run one peer, and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bands", type=int, default=14)
    parser.add_argument("--rows", type=int, default=8)
    given = parser.parse_args()
    clock = Clock()
    removed = PEERS[given.peer](given.corpus, given.folder, given.bands, given.rows, clock)
    found = {
        "version": importlib.metadata.version(given.peer),
        "seconds": clock.parts,
        "peak_memory_bytes": peak_memory(),
        "removed": sorted(removed),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
