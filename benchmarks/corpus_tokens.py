"""Tokenising for corpus.py: the builder's shards, or the `tokenizers` library alone, on all cores.

    python corpus_tokens.py shards|library CORPUS.jsonl FOLDER --workers 2

Both read the same texts with one tokenizer, which is made in FOLDER if it is not there. Prints a
line of JSON: seconds of wall and processor by part, tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from corpus_peers import Clock, rows
from corpus_rows import read_rows, row_parts

from lmsmith.corpus.build.local import LocalEngine
from lmsmith.corpus.build.shards import TokenizerFolder, parts_of, write_part
from lmsmith.tokenizers import Tokenizer

TRAINING = 4_000
"""Documents that the tokenizer is trained on."""

VOCABULARY = 16_000


def tokenizer_in(folder: Path, corpus: Path) -> Path:
    """The folder of the tokenizer."""
    place = folder / "tokenizer"
    if not place.is_dir():
        texts = [row["text"] for _, row in zip(range(TRAINING), rows(corpus), strict=False)]
        Tokenizer.train(texts, VOCABULARY).save(place)
    return place


def shards(corpus: Path, folder: Path, place: Path, workers: int, clock: Clock) -> int:
    """Tokens of the shards that the builder writes from a checkpoint, in the order of a hash."""
    engine = LocalEngine(folder / "work", workers)
    data = engine.read("read", row_parts(corpus), read_rows, "planted")
    clock.part("read")
    given = TokenizerFolder(place, "tokenizer")
    bytes_of = {source: total for source, (_, total) in engine.sizes(data).items()}
    records = engine.arrange(data, folder / "shards", parts_of(bytes_of, 16), write_part, given)
    engine.close()  # the processor's seconds of processes are counted when they end
    clock.part("tokens")
    return sum(record["tokens"] for record in records)


def library(corpus: Path, place: Path, clock: Clock) -> int:
    """Tokens by the library's batches, in memory: the texts are read before, nothing is written."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
    texts = [row["text"] for row in rows(corpus)]
    clock.part("read")
    total = 0
    for start in range(0, len(texts), 4096):
        batch = backend.encode_batch_fast(texts[start : start + 4096], add_special_tokens=False)
        total += sum(len(each.ids) + 2 for each in batch)  # with the frame of a document
    clock.part("tokens")
    return total


def main() -> None:
    """Run a side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("shards", "library"))
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    place = tokenizer_in(given.folder, given.corpus)
    clock = Clock()
    if given.side == "shards":
        tokens = shards(given.corpus, given.folder, place, given.workers, clock)
    else:
        tokens = library(given.corpus, place, clock)
    print(json.dumps({"seconds": clock.parts, "tokens": tokens}))


if __name__ == "__main__":
    main()
